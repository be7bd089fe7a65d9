"""The process of one job: waits for its turn, runs the command, and notes what became of it. Started by ``Jobs.start``."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llm_forget.utils.files import write_json

STARTING = 30.0  # seconds in which the process of a new job may be starting
_EVERY = 0.3  # seconds between looks at the queue


def main(folder: Path) -> int:
    """Run the job in a folder. Returns the status of its command."""
    held = next((one for _ in range(20) if (one := try_lock(folder / "lock", again=0.05)) is not None), None)
    if held is None:
        return 2  # somebody runs it already
    told: list[int] = []  # a handler, not SIG_IGN, which the command would inherit
    signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    made = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    state: dict[str, Any] = {"pid": os.getpid()}
    write_json(folder / "state.json", state)
    turn = _wait(folder, int(made.get("at_once", 1)), told)
    status = 130
    if turn is not None:
        state["began"] = time.time()
        write_json(folder / "state.json", state)
        command = [sys.executable, "-P", "-m", "llm_forget.cli", *made["argv"]]
        child = subprocess.Popen(command, pass_fds=(held, turn), stdin=subprocess.DEVNULL)
        if told:
            child.send_signal(signal.SIGINT)
        status = child.wait()  # a signal to the group reaches the command too, which ends by itself
    write_json(folder / "state.json", {**state, "status": status, "ended": time.time()})
    return status


def try_lock(file: Path, *, shared: bool = False, again: float = 0) -> int | None:
    """A handle of the locked file; None, after a moment, if another process holds it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        time.sleep(again)
        return None
    return handle


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock of a file."""
    if not file.exists():
        return False
    handle = try_lock(file, shared=True)
    if handle is not None:
        os.close(handle)
    return handle is None


def _wait(folder: Path, at_once: int, told: list[int]) -> int | None:
    """Wait until this is the oldest job that waits and a place is free. Returns its lock; None if told to end."""
    while not told:
        older = (one for one in folder.parent.iterdir() if one.name.isdigit() and int(one.name) < int(folder.name))
        if not any(map(_waits, older)):
            for number in range(at_once):
                turn = try_lock(folder.parent / f".turn-{number}")
                if turn is not None:
                    return turn
        time.sleep(_EVERY)
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """What became of the job in a folder; nothing if it has not begun to wait."""
    try:
        found = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _waits(folder: Path) -> bool:
    state = read_state(folder)
    if not state:
        return time.time() - folder.stat().st_mtime < STARTING
    return "began" not in state and "status" not in state and is_locked(folder / "lock")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
