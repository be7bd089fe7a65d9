"""Which files a search reads, and the searchable text and keys of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_forget.data.examples import FIELDS
from llm_forget.data.readers import SUFFIXES, locate, read_file
from llm_forget.data.row import Row
from llm_forget.errors import DataError

# Columns that say who or what a row is about, and columns whose equal values make rows one record.
_NAME_COLUMNS = frozenset(
    (
        "subject",
        "name",
        "full_name",
        "fullname",
        "author",
        "person",
        "entity",
        "customer",
        "patient",
        "user",
        "employee",
    )
)
_RECORD_COLUMNS = frozenset(
    (
        "record",
        "edge",
        "document",
        "doc",
        "group",
        "case",
        "conversation",
        "thread",
        "session",
        "email",
        "account",
        "topic",
    )
)
_TRAINED = tuple(name for name in FIELDS if name not in ("paraphrased_answer", "perturbed_answer", "alternative"))
_NOT_TRAINED = re.compile(r"(perturbed|paraphrased|wrong|false)_|options?\d*$|choices?$|alternative$")


@dataclass(frozen=True)
class Place:
    """Where a row is: its file as the user named it, and its line or number from 1."""

    file: str
    line: int


def files_in(data: Sequence[str | Path]) -> list[str]:
    """The files that are searched: those that are given, and those that can be read in folders that are given.

    Raises:
        DataError: a file does not exist, or a folder holds none that can be read.
    """
    found: list[str] = []
    for given in map(str, data):
        path = Path(given).expanduser()
        if path.is_dir() and not _is_saved(path):
            inside = sorted(
                str(one)
                for one in path.rglob("*")
                if one.suffix.lower() in SUFFIXES
                and one.is_file()
                and not any(part.startswith(".") for part in one.relative_to(path).parts)
            )
            if not inside:
                raise DataError(
                    f"{given}: the folder holds no file that can be read; give one with {', '.join(SUFFIXES)}"
                )
            found += inside
        elif locate(given) is None:
            raise DataError(
                f"{given}: no such file or folder; a search reads local files only: download the data first"
            )
        else:
            found.append(given)
    unique = {Path(one).expanduser().resolve(): one for one in reversed(found)}
    return list(reversed(unique.values()))


def _is_saved(folder: Path) -> bool:
    from llm_forget.data.arrow_files import is_saved_dataset

    return is_saved_dataset(folder)


def rows_of(file: str, notes: list[str]) -> Iterator[Row]:
    """The rows of one file of ``files_in``."""
    return read_file(Path(file).expanduser(), file, notes=notes)


def line_of(row: Row) -> int:
    """The line or number of a row, from the end of its source: ``file:12``, ``file, item 12`` or ``file, row 12``."""
    number = row.source.rpartition(":")[2]
    if not number.isdigit():
        number = row.source.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def text_of(values: Mapping[str, object]) -> str:
    """What a model is trained on in a row: the fields of its form, else every text but wrong answers and options."""
    parts: list[str] = []
    for value in trained_fields(values).values():
        _collect(value, parts)
    return "\n".join(parts)


def trained_fields(values: Mapping[str, object]) -> dict[str, object]:
    """The columns of a row that ``text_of`` reads."""
    known = {name: values[name] for name in _TRAINED if name in values}
    return known or {name: value for name, value in values.items() if not _NOT_TRAINED.search(str(name))}


def _collect(value: object, parts: list[str], depth: int = 0) -> None:
    if isinstance(value, str):
        parts.append(value)
    elif depth > 8:
        return
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            if name not in ("role", "from", "type"):
                _collect(entry, parts, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            _collect(entry, parts, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        parts.append(str(value))


def name_in(values: Mapping[str, object]) -> str | None:
    """Who a row is about, if a column says so."""
    for column, value in values.items():
        if isinstance(value, str) and str(column).casefold() in _NAME_COLUMNS:
            return value
    return None


def record_in(values: Mapping[str, object]) -> tuple[str, object] | None:
    """The column that makes rows one record, and its value."""
    for column, value in values.items():
        name = str(column).casefold()
        if isinstance(value, str | int) and (name in _RECORD_COLUMNS or name == "id" or name.endswith(("_id", "-id"))):
            return name, value
    return None
