"""Read rows from JSONL, JSON, CSV, TSV and Parquet files or from the hub, each with its location.

This module does not interpret columns. A row that cannot be read is returned with a problem, so that all problems of a file are
reported at once. Only problems of the whole file are raised. Messages never hold a value of a row, because forget sets are
private.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from llm_forget.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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


def read_file(path: Path, label: str) -> Iterator[Row]:
    """Read the rows of a file. The suffix of its name decides the format.

    Args:
        path: an existing file.
        label: its name in messages, usually the path as the user wrote it.

    Returns:
        The rows in file order, as a stream if the format allows it.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{label}: files that end in {path.suffix or 'nothing'!r} cannot be read; "
            f"allowed are {', '.join(_READERS)}: convert the file, or rename it if it is one of these"
        )
    return reader(path, label)


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Read the rows of a data set of the Hugging Face hub.

    Args:
        path: ``owner/name``.
        name: configuration of the data set; None for its default.
        split: the split.
        revision: branch, tag or commit; None for the newest.

    Returns:
        The rows in order.

    Raises:
        DataError: the data set cannot be loaded.
    """
    from datasets import load_dataset  # the import takes a second, and most data are files

    try:
        loaded = load_dataset(path, name, split=split, revision=revision)
    except Exception as error:
        # Only the type of the error is shown, because some messages of datasets quote the row.
        raise DataError(
            f"{path}: no such file, and loading it from the hub failed ({type(error).__name__}). Check the id, "
            f"name ({name}), split ({split}), revision ({revision}) and the network; or download it and give a file"
        ) from None
    return (Row(f"{path}[{split}], row {number}", values) for number, values in enumerate(loaded, start=1))


def rows_in_memory(rows: Iterable[object], label: str) -> Iterator[Row]:
    """Convert a list of mappings or a ``datasets.Dataset`` to rows.

    Args:
        rows: one mapping of column names to values per row.
        label: their name in messages.
    """
    for number, value in enumerate(rows, start=1):
        source = f"{label}, row {number}"
        if isinstance(value, Mapping):
            yield Row(source, value)
        else:
            kind = type(value).__name__
            yield Row(source, problem=f'a {kind}, not a mapping: write {{"question": ..., "answer": ...}} per row')


def locate(path: str) -> Path | None:
    """Find the file that a recipe names.

    Args:
        path: the path as the user wrote it. A relative path starts from the current folder.

    Returns:
        The existing file, or None if ``path`` can only be an id on the hub.

    Raises:
        DataError: the path is a folder, or the file does not exist; the message names similar files.
    """
    found = Path(path).expanduser()
    if found.is_file():
        return found
    if found.is_dir():
        inside = sorted(entry.name for entry in found.iterdir() if entry.suffix.lower() in _READERS)
        raise DataError(
            f"{path}: is a folder; name one file in it ({_listed(inside) or 'it holds none that can be read'})"
        )
    is_file_name = found.suffix.lower() in _READERS or found.parent.is_dir()
    if _HUB_ID.fullmatch(path) and not is_file_name:
        return None
    raise DataError(f"{path}: no such file{_nearest_files(found)}; {_searched_from(found)}")


def _searched_from(wanted: Path) -> str:
    """Say where a path was searched, and what else may be given."""
    where = "" if wanted.is_absolute() else "relative paths start from the current folder; "
    return f"{where}give an existing {', '.join(_READERS)} file or a hub id of the form owner/name"


def _nearest_files(missing: Path) -> str:
    """The files in the same folder with the most similar names."""
    if not missing.parent.is_dir():
        return f" (nor the folder {missing.parent})"
    names = sorted(entry.name for entry in missing.parent.iterdir() if entry.is_file())
    nearest = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    if nearest:
        return f", did you mean {' or '.join(nearest)}"
    readable = [name for name in names if Path(name).suffix.lower() in _READERS]
    return f"; that folder holds {_listed(readable)}" if readable else ""


def _listed(names: list[str], most: int = 8) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_bytes(path: Path, label: str) -> bytes:
    """The bytes of a UTF-8 text file, without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if content.startswith(_UTF16_MARKS):
        raise DataError(f"{label}:1: the file is UTF-16, and UTF-8 is needed: save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf")


def _read_text(path: Path, label: str) -> str:
    """The text of a UTF-8 file. An error names the line that is not UTF-8."""
    content = _read_bytes(path, label)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{label}:{line}: not UTF-8: save the file as UTF-8") from None


def _as_row(source: str, value: object) -> Row:
    """A row from a parsed JSON value."""
    if isinstance(value, dict):
        return Row(source, value)
    return Row(source, problem=f"a JSON {_json_kind(value)}, not an object: write one {{...}} per row")


def _json_kind(value: object) -> str:
    """The name of a JSON value that is not an object."""
    kinds: dict[type, str] = {list: "list", str: "string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "number")


def _parse_json(text: str) -> tuple[Any, str | None]:
    """A JSON value and None, or None and the problem. The parser's own message is not used, because it may quote the text."""
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, f"not valid JSON (character {error.pos + 1}): check quotes, commas and escapes there"
    except RecursionError:
        return None, "JSON nested too deeply to read: write a flat object"
    except ValueError:  # a number with too many digits for Python
        return None, "not JSON that can be read (a number with too many digits?): write it as a string"


def _read_jsonl(path: Path, label: str) -> Iterator[Row]:
    """Read one JSON object per line. Blank lines are skipped, but counted in line numbers."""
    # Split at "\n" only: str.splitlines also splits at separators that JSON strings may hold (U+2028 and others).
    for number, line in enumerate(_read_bytes(path, label).split(b"\n"), start=1):
        if not line.strip():
            continue
        source = f"{label}:{number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            yield Row(source, problem="not UTF-8: save the file as UTF-8")
            continue
        value, problem = _parse_json(text)
        yield _as_row(source, value) if problem is None else Row(source, problem=problem)


def _read_json(path: Path, label: str) -> Iterator[Row]:
    """Read a list of objects, or an object with a single list."""
    value, problem = _parse_json(_read_text(path, label))
    if problem is not None:
        raise DataError(f"{label}: {problem}; for one object per line, name the file .jsonl")
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise DataError(
            f'{label}: a list of objects is needed, or one object with a single list such as {{"data": [...]}}; '
            "for one object per line, name the file .jsonl"
        )
    return (_as_row(f"{label}, item {number}", entry) for number, entry in enumerate(value, start=1))


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read cells of any length. Its default limit of 128 KiB is too small for documents."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_csv(path: Path, label: str) -> Iterator[Row]:
    """Read a header line and one record per row. Cells may hold quoted commas, quotes and line breaks."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # newline="" keeps line breaks inside quoted cells; strict refuses a quote that is not closed.
    reader = csv.reader(io.StringIO(_read_text(path, label), newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    end = 0  # a record may span several lines; its first line names it
    with _long_cells():
        try:
            for cells in reader:
                source, end = f"{label}:{end + 1}", reader.line_num
                if not cells:
                    continue
                if header is None:
                    header = _checked_header(cells, source)
                else:
                    rows.append(_csv_row(source, header, cells))
        except csv.Error:
            raise DataError(
                f"{label}:{end + 1}: the quotes of this record do not match: quote cells that hold commas, quotes or "
                'line breaks, and double every quote inside them ("")'
            ) from None
    return iter(rows)


def _checked_header(cells: list[str], source: str) -> list[str]:
    """The column names. Duplicates are refused."""
    header = [cell.strip() for cell in cells]
    if len(set(header)) < len(header):
        raise DataError(f"{source}: the header names a column twice (or leaves two empty): give each its own name")
    return header


def _csv_row(source: str, header: list[str], cells: list[str]) -> Row:
    """Convert a record to a row. An empty cell is a missing value."""
    if len(cells) != len(header):
        return Row(
            source, problem=f"{len(cells)} cells under {len(header)} columns: quote cells that hold the delimiter"
        )
    return Row(source, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _read_parquet(path: Path, label: str) -> Iterator[Row]:
    """The rows of a Parquet file."""
    # pyarrow comes with datasets.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        values = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        raise DataError(f"{label}: not a Parquet file that can be read; write it again, or give JSONL") from None
    return (Row(f"{label}, row {number}", entry) for number, entry in enumerate(values, start=1))


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)


def take(rows: Iterator[Row], limit: int | None) -> list[Row]:
    """The first ``limit`` rows; None takes all."""
    return list(islice(rows, limit))
