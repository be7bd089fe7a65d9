"""Explain a full or read-only disk, in whatever command and library it is noticed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llm_forget.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
AGAIN = "run the same command again"


@contextmanager
def explained_if_full(folder: str | Path, remedy: str = AGAIN) -> Iterator[None]:
    """Turn the error of a full or read-only disk into a message that says what was not written and what to do.

    Args:
        folder: what is written.
        remedy: what to do once there is space.

    Raises:
        UserError: instead of an ``OSError`` or ``SafetensorError`` with one of these reasons.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if full_disk(error) is None:
            raise
        raise full(folder, error, remedy) from error


def full(folder: str | Path, error: BaseException, remedy: str = AGAIN) -> UserError:
    """The message for an error of ``full_disk``."""
    return UserError(
        f"{folder} cannot be written: {full_disk(error)}. Existing files are unchanged. Free disk space and {remedy}"
    )


def full_disk(error: BaseException) -> str | None:
    """The reason, if an error says that a disk or a quota is full, a file too large or a disk read-only; otherwise None."""
    if isinstance(error, SafetensorError):  # has the number in its text alone
        found = re.search(r"(?:os error|code:) (\d+)", str(error))
        number = int(found[1]) if found else None
    else:
        number = error.errno if isinstance(error, OSError) else None
    if number is None or number not in _FULL:
        return None
    name = getattr(error, "filename", None)
    return os.strerror(number) + (f" ({name})" if name else "")
