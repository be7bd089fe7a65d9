"""Write files and folders atomically, so that a reader never sees a partial one."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Names of files that come from a recipe or a suite: one part of a path, visible, and readable in a terminal.
_PLAIN_NAME = re.compile(r"\w[\w .,+=@-]{0,99}")
# A process id is only meaningful on its own machine.
_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
_TEMPORARY = re.compile(r"(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]{8}\.(?P<kind>new|old)")


def is_plain_name(name: str) -> bool:
    """Whether a text can name a file in a given folder: it is no path, does not leave the folder, and is not hidden."""
    return _PLAIN_NAME.fullmatch(name) is not None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder next to ``target`` that replaces it at the end, or is removed if anything fails.

    All contents are synced to disk before the rename.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target)
    tag = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (target.parent / f".{target.name}.{tag}.{kind}" for kind in ("new", "old"))
    new.mkdir()
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _sync(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def tidy(target: Path) -> None:
    """Clean up after processes of this machine that died while writing ``target``.

    Removes unfinished folders, and restores a folder that was moved aside to be replaced.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = _TEMPORARY.fullmatch(path.name.removeprefix(f".{target.name}."))
        if found is None or found["host"] != _HOST or _alive(int(found["pid"])):
            continue
        if found["kind"] == "old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's process, or unknown
    return True


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # folders can only be opened on POSIX
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and sync it to disk; parents are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with null for NaN."""
    write_text(path, json.dumps(_without_nan(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
