"""End cleanly on SIGTERM, SIGINT and SIGHUP, and with the launcher that started this process.

A command that receives a signal raises ``Ended``, so that temporary files and locks are removed. Training replaces this by a
flag, and saves at the end of the step. A signal that the caller ignores (``nohup``, a background job) stays ignored.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_forget.utils.rank import process_rank

# SIGHUP arrives when a terminal or an ssh session is lost; Windows has none.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")
_PR_SET_PDEATHSIG = 1
_launcher: list[int] = []  # process id of the launcher, once known
_received: list[int] = []  # signals to end since the command began


class Ended(BaseException):
    """A signal asks the process to end. Not an ``Exception``, so that nothing on the way takes it for a failure.

    Attributes:
        signal: its number.
        exit_code: the status that a shell reports of a process that it ended: 143 for SIGTERM, 130 SIGINT, 129 SIGHUP.
    """

    def __init__(self, number: int) -> None:
        self.signal, self.exit_code = number, 128 + number
        super().__init__(f"received {signal.Signals(number).name}")


class Told:
    """Whether the process was told to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, number: int) -> None:
        """Note a signal; the first one counts."""
        self.signal = self.signal or number

    def is_set(self) -> bool:
        """Whether a signal arrived, or the launcher has ended."""
        if self.signal is None and launcher_is_gone():
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Context in which SIGTERM, SIGINT and SIGHUP raise ``Ended`` in the main thread, for a command that ends afterwards.

    After the first signal only another SIGINT counts. Otherwise the SIGTERM that follows the end of a launcher would break off
    the cleaning up. The process ignores it to its end.
    """
    _received.clear()

    def end(number: int) -> None:
        again = bool(_received)
        _received.append(number)
        if not again or number == signal.SIGINT:
            raise Ended(number)

    try:
        with _handled(end):
            yield
    finally:
        if _received and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def told_to_end(note: str) -> Iterator[Told]:
    """Context in which the first SIGTERM, SIGINT or SIGHUP sets a flag, and a second SIGINT raises ``Ended``.

    Args:
        note: what follows; shown on standard error after the first signal.
    """
    told = Told()

    def handle(number: int) -> None:
        if told.signal is not None:
            if number == signal.SIGINT:
                raise Ended(number)
            return
        told.set(number)
        _received.append(number)
        _show(f"received {signal.Signals(number).name}: {note}\n")

    with _handled(handle):
        yield told


@contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Context with a handler for all three signals. Only the main thread of this very process runs it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def handler(number: int, _: Any) -> None:
        if os.getpid() != own:  # a forked worker ends as if there were no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        handle(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # None: set by something other than Python
                signal.signal(number, earlier)


def _show(text: str) -> None:
    """Write to standard error without Python's buffers, which a signal may have interrupted; only the first process does."""
    if process_rank() == 0:
        try:
            # a terminal has printed ^C, mostly behind a progress bar
            os.write(2, f"\n{text}".encode() if os.isatty(2) else text.encode())
        except OSError:
            return


def _leave_terminal() -> None:
    """Send output nowhere if the terminal is gone: writing to it would fail in the middle of saving."""
    for stream in (1, 2):
        try:
            os.write(stream, b"\n")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def end_with_launcher() -> None:
    """Receive SIGTERM when the launcher that started this process ends (``accelerate launch`` passes no signal on).

    On Linux the kernel sends it; elsewhere training looks at its parent in every step. A process that a shell or a service
    manager started is left alone, so that it may outlive them.
    """
    parent = os.getppid()
    if not _is_launcher(parent):
        return
    _launcher[:] = [parent]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if launcher_is_gone():  # before the kernel was asked
        raise Ended(signal.SIGTERM)


def launcher_is_gone() -> bool:
    """Whether this process has lost the launcher that started it."""
    return bool(_launcher) and os.getppid() != _launcher[0]


def _is_launcher(process: int) -> bool:
    """Whether a process is a launcher, by its command line; where that cannot be read, by the variables that launchers set."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return sys.platform != "linux"
    return any(name in command for name in _LAUNCHERS)
