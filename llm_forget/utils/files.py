"""Write files and folders atomically, so that a reader never sees a partial one."""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.disk import full_disk
from llm_forget.utils.written import keep_foreign

# Names of files that come from a recipe or a suite: one part of a path, visible, and readable in a terminal.
_PLAIN_NAME = re.compile(r"\w[\w .,+=@-]{0,99}")
# A process id is only meaningful on its own machine.
HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
# Files besides the weights that change what a model or an adapter computes.
_CONFIGS = ("adapter_config.json", "config.json")
_AT_START: dict[Path, tuple[int, int] | None] = {}  # see replacing_only_this
_TEMPORARY = re.compile(r"(?P<host>\w+)-(?P<pid>\d{1,9})-[0-9a-f]{8}\.(?P<kind>new|old)")
_TEMPORARY_FILE = re.compile(rf"\..+\.{_TEMPORARY.pattern}")


def is_plain_name(name: str) -> bool:
    """Whether a text can name a file in a given folder: it is no path, does not leave the folder, and is not hidden."""
    return _PLAIN_NAME.fullmatch(name) is not None


def real_folder(folder: str | Path, what: str = "output_dir") -> Path:
    """The folder that a path names, behind a link if it is one, so that writing it replaces no link. It has a name and a parent.

    Raises:
        UserError: the links lead in a circle, or it is the root.
    """
    path = Path(folder)
    try:
        path = path.resolve() if path.is_symlink() or path.name in ("", "..") else path
    except (OSError, RuntimeError):
        raise UserError(f"{what}: {folder} is a link that leads to itself; give another folder") from None
    if not path.name:
        raise UserError(f"{what}: {folder} is the root of the file system; give a folder inside it")
    return path


def next_to(folder: str | Path, suffix: str) -> Path:
    """The path next to a folder with its name and a suffix; a link is not followed."""
    path = Path(folder)
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.name}.{suffix}")


@contextmanager
def new_folder(target: Path, *, same_if_present: bool = False) -> Iterator[Path]:
    """A temporary folder next to ``target`` that replaces it at the end, or is removed if anything fails.

    All contents are synced to disk before the rename. Files of the replaced folder that no command wrote move to the new one. A
    folder that another process puts in the place of ``target`` meanwhile is not replaced.

    Args:
        target: the folder; a link is followed.
        same_if_present: what another process wrote there meanwhile is the same, and is used instead.

    Raises:
        UserError: another process wrote ``target`` meanwhile; the message says where the new folder is.
    """
    target = real_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target)
    before = _AT_START.get(target, identity(target))
    tag = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (target.parent / f".{target.name}.{tag}.{kind}" for kind in ("new", "old"))
    new.mkdir()
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _sync(path)
        if identity(target) == before and _put(new, target, old):
            _AT_START.update({target: identity(target)} if target in _AT_START else {})
        elif same_if_present:
            shutil.rmtree(new, ignore_errors=True)
        else:
            raise UserError(
                f"{target} was written by another process meanwhile and is not replaced; this result is in "
                f"{_moved_next_to(new, target)}"
            )
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(target.parent)
    _remove_replaced(old, target)


@contextmanager
def replacing_only_this(target: Path) -> Iterator[None]:
    """Context in which ``new_folder`` replaces only what is at ``target`` now, however late it is called."""
    if target in _AT_START:
        yield
        return
    _AT_START[target] = identity(target)
    try:
        yield
    finally:
        _AT_START.pop(target, None)


def identity(path: Path) -> tuple[int, int] | None:
    """What distinguishes a folder from another one of the same name; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _put(new: Path, target: Path, old: Path) -> bool:
    """Move a finished folder to its place, and what was there to ``old``; False if something appeared there in between."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _moved_next_to(new: Path, target: Path) -> Path:
    """Move a finished folder to the first free name next to the one it was meant for."""
    for number in itertools.count(2):
        place = target.with_name(f"{target.name}-{number}")
        if not place.exists():
            break
    new.rename(place)
    return place


def _remove_replaced(old: Path, target: Path) -> None:
    if old.is_dir():
        keep_foreign(old, target)
    shutil.rmtree(old, ignore_errors=True)


def tidy(target: Path) -> None:
    """Clean up after processes of this machine that died while writing ``target``, a folder or a file.

    Removes what is unfinished, and restores a folder that was moved aside to be replaced.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = _TEMPORARY.fullmatch(path.name.removeprefix(f".{target.name}."))
        if found is None or not _abandoned(found):
            continue
        if found["kind"] == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir():
            _remove_replaced(path, target) if found["kind"] == "old" else shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def tidy_files(folder: Path) -> None:
    """Remove the unfinished files that processes of this machine left in a folder when they died.

    For readers: errors are ignored, because a folder that cannot be written can still be read, and folders stay.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _TEMPORARY_FILE.fullmatch(entry.name)
            if found is not None and _abandoned(found) and not entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    Path(entry.path).unlink()


def tidy_folders(parent: Path) -> None:
    """Call ``tidy`` for each folder in ``parent`` that a dead process of this machine was writing. For readers, as above."""
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            found = _TEMPORARY_FILE.fullmatch(entry.name)
            if found is not None and _abandoned(found) and entry.is_dir(follow_symlinks=False):
                tidy(parent / entry.name[1 : found.start("host") - 1])


def _abandoned(name: re.Match[str]) -> bool:
    """Whether the process that a temporary name names was of this machine and is dead."""
    return name["host"] == HOST and not is_alive(int(name["pid"]))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
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


@contextmanager
def new_file(path: Path, *, within: Path | None = None, sync: bool = True) -> Iterator[Path]:
    """A temporary name for a file that becomes ``path`` at the end, or is removed if anything fails.

    Args:
        path: the final file; its parents are created.
        within: the folder of the temporary file; the one of ``path`` by default. It must be on the same disk.
        sync: whether to sync the content to disk first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = (within or path.parent) / f".{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.new"
    try:
        yield partial
        if sync:
            _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and sync it to disk; parents are created.

    A lone surrogate, which stands for a byte of a file name that is not UTF-8, is written as an escape.

    Raises:
        UserError: the place cannot be written. The error of a full disk is passed on.
    """
    try:
        if path.parent.is_dir():
            tidy(path)
        with new_file(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        if full_disk(error) is not None:
            raise
        raise UserError(f"{path} cannot be written: {error.strerror or error}; give another place") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with null for NaN."""
    write_text(path, json.dumps(_without_nan(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as ``write_json`` does, with a ``checksum`` of the content, so that a reader can say that it was edited."""
    kept = {key: value for key, value in content.items() if key != "checksum"}
    write_json(path, {**kept, "checksum": content_digest(kept)})


def edits(content: Mapping[str, Any]) -> str:
    """Whether the content of a file from ``write_record`` was edited: the end of a sentence about the file, or nothing."""
    if content.get("checksum") is None:
        return "states no checksum, so it is unknown whether it was edited"
    return "" if content["checksum"] == content_digest(content, "checksum") else "was edited after it was written"


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


def content_digest(values: Mapping[str, Any], *without: str) -> str:
    """SHA-256 of JSON values in any order and layout of the file, 64 hex digits.

    Args:
        values: values that JSON can hold; NaN counts as null, as in ``write_json``.
        without: top-level keys that are left out.
    """
    kept = _without_nan({key: value for key, value in values.items() if key not in without})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def folder_digest(folder: Path) -> str | None:
    """SHA-256 over the weights and configuration of a model's or adapter's folder: names and bytes of its files.

    Args:
        folder: a folder with safetensors files.

    Returns:
        64 hex digits; None if there is no such file, or the folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
        for file in [*files, *(folder / name for name in _CONFIGS)]:
            if file.is_file():
                digest.update(f"{file.name!a} {file_digest(file)}\n".encode())
    except OSError:
        return None
    return digest.hexdigest() if files else None


def folder_size(folder: Path) -> int:
    """Bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())
