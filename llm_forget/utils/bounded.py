"""Run a script of the package on data from somebody else, in a process of its own with limits on time and memory."""

from __future__ import annotations

import subprocess
import sys

_WAIT = 60.0  # seconds, for a process that its own limits do not stop
# Sets the limits, then runs the script. Only POSIX has such limits; the caller's time limit holds everywhere.
_START = """
import runpy, sys
script, seconds, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    import resource
except ImportError:
    resource = None
if resource is not None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        try:
            resource.setrlimit(getattr(resource, name), (memory, memory))
        except (AttributeError, ValueError, OSError):
            continue  # macOS refuses to limit memory
runpy.run_path(script, run_name="__main__")
"""


class TooMuchError(Exception):
    """The process was stopped: it took too much time or memory. The message is the end of "it takes …"."""


def run_bounded(script: str, request: str, *, seconds: int, memory: int) -> str:
    """Run a script that reads a request from standard input and writes an answer to standard output. It can write no file.

    Args:
        script: its path. It should import nothing of the package, so that it starts in a fraction of a second.
        request: the request.
        seconds: seconds of computing.
        memory: bytes.

    Returns:
        The answer.

    Raises:
        TooMuchError: the process was stopped, or wrote no answer.
        OSError: no process can be started here.
    """
    command = [sys.executable, "-P", "-c", _START, script, str(seconds), str(memory)]
    try:
        ended = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=_WAIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise TooMuchError(f"more than {_WAIT:.0f} seconds") from None
    if ended.returncode == 0 and ended.stdout:
        return ended.stdout
    raise TooMuchError(f"more than {seconds} seconds of computing, or too much memory")
