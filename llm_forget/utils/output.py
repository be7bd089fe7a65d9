"""Folders that a command writes: checked before the work, locked during it, explained if the disk is full."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llm_forget.errors import UserError
from llm_forget.utils.disk import AGAIN, explained_if_full, full, full_disk
from llm_forget.utils.files import real_folder, replacing_only_this
from llm_forget.utils.lock import locked


@contextmanager
def writing(
    folder: str | Path, what: str = "output_dir", *, remedy: str = AGAIN, shared: bool = False
) -> Iterator[None]:
    """Context of a command that writes a folder: no other command writes it meanwhile, and a full disk is explained.

    Before anything is computed, a temporary file shows that the place can be written.

    Args:
        folder: the folder; its parents are created.
        what: what it is in the recipe or command, for messages.
        remedy: what to do once there is space.
        shared: write into the folder together with others, instead of replacing it.

    Raises:
        UserError: the place cannot be written or replaced, another process writes it, or the disk is full.
    """
    target = real_folder(folder, what)
    if not shared and target.is_mount():
        raise UserError(
            f"{what}: {folder} is a mount point, which a finished result cannot replace; give a folder inside it"
        )
    if not shared and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(
            f"{what}: {folder} contains the current folder, which a finished result would replace; give another one"
        )
    with ExitStack() as held:
        place = target if shared else target.parent
        held.callback(_remove_empty, [path for path in (place, *place.parents) if not path.exists()])
        try:
            check_writable(place)
            held.enter_context(locked(target, what, shared=shared))
        except OSError as error:
            if full_disk(error) is not None:
                raise full(folder, error, remedy) from error
            reason = error.strerror or str(error)
            raise UserError(f"{what}: {folder} cannot be written: {reason}; give another folder") from error
        with replacing_only_this(target), explained_if_full(folder, remedy):
            yield


def check_writable(folder: Path) -> None:
    """Create and remove a file in a folder, which is created with its parents.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / f".llm-forget-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        trial.write_bytes(bytes(4096))  # an empty file needs no space
    finally:
        trial.unlink(missing_ok=True)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders from the inside out, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_inputs_outside(output_dir: str | Path, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Check that a folder that may be replaced contains nothing that the command reads.

    Args:
        output_dir: the folder.
        inputs: (key in the recipe, path or other name) of each input.

    Raises:
        UserError: an input is the folder or lies in it.
    """
    target = Path(output_dir).resolve()
    for key, name in inputs:
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(target):
            raise UserError(
                f"output_dir: {output_dir} contains {key} ({name}), and would replace it; give another folder"
            )
