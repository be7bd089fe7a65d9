"""One row of a file, its limits, and text files as strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from llm_forget.errors import DataError

# Most rows of a set, and most characters of one text. Files of a few kilobytes can hold more, and would fill the memory.
MOST_ROWS = 1_000_000
MOST_CHARACTERS = 1 << 24
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Row:
    """One row of a file: its values, or why it could not be read.

    Attributes:
        source: its location, file and line, for messages.
        values: column name → value; empty if there is a problem.
        problem: the problem and its remedy, without any text of the row; None for a row that was read.
    """

    source: str
    values: Mapping[str, object] = field(default_factory=dict, repr=False)
    problem: str | None = None


def take(rows: Iterator[Row], limit: int | None, label: str) -> list[Row]:
    """The first ``limit`` rows; None takes all.

    Raises:
        DataError: there are more than ``MOST_ROWS``.
    """
    found = list(islice(rows, MOST_ROWS + 1 if limit is None else min(limit, MOST_ROWS + 1)))
    if len(found) > MOST_ROWS:
        raise too_many_rows(label, None)
    return found


def too_many_rows(label: str, rows: int | None) -> DataError:
    """The error for a file with more rows than are read."""
    held = f"{rows:,} rows" if rows is not None else f"more than {MOST_ROWS:,} rows"
    return DataError(f"{label}: holds {held}; at most {MOST_ROWS:,} are read: set limit, or give a smaller file")


def read_bytes(path: Path, label: str) -> bytes:
    """The bytes of a text file in UTF-8, without a byte order mark. UTF-16 and UTF-32 are converted if a mark names them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror}); check the file and its permissions") from None
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding).encode("utf-8")
            except UnicodeError:
                raise DataError(f"{label}:1: begins as {encoding.upper()} and is not: save the file as UTF-8") from None
    return content.removeprefix(b"\xef\xbb\xbf")


def as_text(content: bytes, label: str) -> str:
    """Decode UTF-8. An error names the line that is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{label}:{line}: not UTF-8: save the file as UTF-8") from None
