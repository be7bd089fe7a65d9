"""Read JSON from other people: bounded in size and depth, with finite numbers only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from llm_forget.errors import UserError

MOST_BYTES = 8 << 20  # of a file; the aggregates of a large evaluation have less than one megabyte
MOST_LEVELS = 50  # lists and objects inside each other
_LONGEST_INTEGER = 18  # digits; a longer one is read as a float


class NotPlainJson(UserError):
    """A file is not JSON, or is more than plain JSON of a reasonable size; the message continues a sentence."""


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotPlainJson: the file cannot be read, is too large, or is not JSON as ``parse_json`` accepts it.
    """
    return parse_json(read_text(file))


def read_text(file: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file in UTF-8 of a limited size.

    Raises:
        NotPlainJson: it is no regular file, too large, or no text.
    """
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            raise NotPlainJson(
                f"cannot be read ({'it is no regular file' if file.exists() else 'there is no such file'})"
            )
        size = file.stat().st_size
        if size > most_bytes:
            raise NotPlainJson(f"has {size / 1e6:.0f} MB; at most {most_bytes >> 20} MB are read")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise NotPlainJson("is not text in UTF-8") from None
    except OSError as error:
        raise NotPlainJson(f"cannot be read ({error.strerror})") from None


def parse_json(text: str, *, nan: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the text.
        nan: read NaN and ±Infinity, which Python writes and JSON does not have, as None.

    Raises:
        NotPlainJson: the text is not JSON, is nested more than ``MOST_LEVELS`` deep, or has a number that no float can hold.
    """

    def constant(name: str) -> None:
        if not nan:
            raise NotPlainJson(f"holds {name}, which is not a number")

    try:
        found = json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=constant)
    except NotPlainJson:
        raise
    except (ValueError, RecursionError):
        raise NotPlainJson("is not JSON") from None
    _check_depth(found)
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotPlainJson("holds a number that is too large")
    return value


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else _finite(text)


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MOST_LEVELS + 1):
        level = [
            item
            for one in level
            if isinstance(one, list | dict)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise NotPlainJson(f"is nested more than {MOST_LEVELS} levels deep")
