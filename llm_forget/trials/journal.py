"""Where the trials of a search are kept: a journal on a shared folder, or a database."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from llm_forget.errors import UserError
from llm_forget.utils.lock import locked

JOURNAL = "journal.log"
# A database says that a worker is dead when it has not written for so long; on a shared folder, its lock says so at once.
_BEAT, _GRACE = 30, 120
_WAIT = 0.01


class JournalLock:
    """A lock that the system releases when its holder is killed, and that repairs what a killed writer left.

    A line without its end would join the next one, and make the whole journal unreadable.

    Args:
        journal: the file.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held: Any = None

    def acquire(self) -> bool:
        """Wait for the lock, then cut off an unfinished line."""
        self._held = waiting_lock(self._journal.with_name(f"{self._journal.name}-writer"))
        self._held.__enter__()
        _cut_unfinished(self._journal)
        return True

    def release(self) -> None:
        """Release the lock."""
        held, self._held = self._held, None
        held.__exit__(None, None, None)


@contextmanager
def waiting_lock(folder: Path) -> Iterator[None]:
    """The lock of ``locked``, but waiting for whoever holds it."""
    while True:
        lock = locked(folder, "the search")
        try:
            lock.__enter__()
        except UserError:
            time.sleep(_WAIT)
            continue
        break
    try:
        yield
    finally:
        with suppress(OSError):
            lock.__exit__(None, None, None)


def is_locked(folder: Path) -> bool:
    """Whether another process or thread holds the lock of a folder."""
    try:
        with locked(folder, "the trial"):
            return False
    except UserError:
        return True


def _cut_unfinished(journal: Path) -> None:
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if not end:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a search.

    Args:
        folder: the search's folder, which all workers see.
        url: a database of SQLAlchemy; None for a journal in the folder.

    Raises:
        UserError: the database cannot be opened.
    """
    if url is None:
        journal = folder / JOURNAL
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))
    try:
        return RDBStorage(url, heartbeat_interval=_BEAT, grace_period=_GRACE)
    except Exception as error:  # of SQLAlchemy or of a driver, which may not be installed
        first = str(error).split("\n")[0]
        raise UserError(
            f"--storage: the database cannot be opened: {first}; give a URL such as "
            "postgresql://HOST/NAME, and install its driver"
        ) from error


def quiet() -> None:
    """Keep Optuna's own lines off the terminal."""
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
