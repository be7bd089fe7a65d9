"""One writer per folder: a lock file next to it, which the system releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.files import HOST, is_alive
from llm_forget.utils.rank import process_rank

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # some network file systems
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_HELD: dict[Path, tuple[int, int]] = {}  # lock file → (process, thread) that holds it


@contextmanager
def locked(folder: Path, what: str = "output_dir", *, shared: bool = False) -> Iterator[None]:
    """Context in which no other process or thread writes ``folder``.

    The lock is ``.NAME.lock`` next to the folder, locked with ``flock``: the kernel releases it when the process ends or is
    killed, so a file that is left over locks nothing. Where ``flock`` is missing, ``.NAME.pid`` names the process, and counts
    as free if that process does not run any more. A nested call of the same thread gets the lock as well. In a launch of
    several processes, only the first one writes and takes the lock.

    Args:
        folder: the folder, which need not exist; its parent must.
        what: what the folder is in the recipe or command, for the message.
        shared: allow other shared holders, such as several evaluations of one run, but no exclusive one.

    Raises:
        UserError: another process or thread holds the lock; the message says which.
        OSError: the lock file cannot be written.
    """
    file, me = folder.parent / f".{folder.name}.lock", (os.getpid(), threading.get_ident())
    if process_rank() != 0 or _HELD.get(file) == me:
        yield
        return
    try:
        taken, handle = _acquire(file, shared)
    except BlockingIOError as error:
        raise UserError(
            f"{what}: {folder} is being written by {error.args[0]}; wait until it ends, or give another folder"
        ) from None
    except OSError as error:
        if not shared or error.errno not in _READ_ONLY:
            raise
        yield  # whoever cannot write next to the folder cannot replace it either
        return
    _HELD[file] = me
    try:
        yield
    finally:
        _HELD.pop(file, None)
        _release(taken, handle)


def _acquire(file: Path, shared: bool) -> tuple[Path, int]:
    """The file that holds the lock, and its open handle; BlockingIOError with the holder if somebody else has it."""
    if fcntl is not None:
        handle = _flocked(file, shared)
        if handle is not None:
            return file, handle
    return _claimed(file.with_suffix(".pid"))


def _flocked(file: Path, shared: bool) -> int | None:
    """A handle of the locked file; None if the file system has no such locks."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise BlockingIOError(_named(_signature(file))) from None
            if error.errno not in _NO_FLOCK:
                raise
            file.unlink(missing_ok=True)
            return None
        if _is_still(file, handle):
            _sign(handle)
            return handle
        os.close(handle)  # its last holder removed the file after it was opened here


def _is_still(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _claimed(file: Path) -> tuple[Path, int]:
    """A new file with our process id; the file of a process that ended is moved out of the way first."""
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            found = _signature(file)
            if found.get("host") != HOST or is_alive(int(found["pid"])):
                unknown = f"; if it does not run any more, remove {file}"
                raise BlockingIOError(_named(found) + unknown) from None
            aside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
            file.rename(aside)  # one of several processes that find it does this
            aside.unlink()
            continue
        _sign(handle)
        return file, handle


def _release(file: Path, handle: int) -> None:
    """Remove the lock file, unless another shared holder still needs it."""
    try:
        if fcntl is not None and file.suffix == ".lock":
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(handle)


def _sign(handle: int) -> None:
    text = json.dumps({"host": HOST, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _signature(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"pid": int(found["pid"]), "host": str(found["host"]), "since": str(found["since"])[:19]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _named(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    return f"process {found['pid']} on {found['host']}, since {found['since']}"
