"""Rows of text files: JSON in all its layouts, and tables with any delimiter. The content decides, not the file's name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from llm_forget.data.row import Row, as_text, read_bytes
from llm_forget.errors import DataError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SNIFFED = 20  # records from which the delimiter is found


def read_text_file(path: Path, label: str, notes: list[str]) -> Iterator[Row] | None:
    """Read JSON or a table.

    Args:
        path: an existing file.
        label: its name in messages.
        notes: gets a line if the delimiter is another than the file's name says.

    Returns:
        The rows in file order; None if the content is neither, and the name does not say that it is.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    content, suffix = read_bytes(path, label), path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_table(as_text(content, label), label, "\t" if suffix == ".tsv" else ",", notes)
    if suffix in (".jsonl", ".ndjson", ".json") or content.lstrip()[:1] in (b"{", b"["):
        return _read_json(content, label, lines=suffix in (".jsonl", ".ndjson"))
    if not content.strip():
        return iter(())
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    delimiter = _sniffed(text, "")
    return _read_table(text, label, delimiter, []) if delimiter else None


# --- JSON ---


def _read_json(content: bytes, label: str, *, lines: bool) -> Iterator[Row]:
    """Read one object a line, a list of objects, or one object with a list of them.

    Args:
        content: UTF-8.
        label: the file's name in messages.
        lines: whether a single object on one line is a row, whatever it holds.
    """
    first, _, rest = content.lstrip().partition(b"\n")
    if isinstance(_parsed(first)[0], dict) and (lines or rest.strip()):
        return _json_lines(content, label)
    one_by_one = lines or (first.startswith(b"{") and first.rstrip().endswith(b"}"))
    if lines and not _is_utf8(content):
        return _json_lines(content, label)
    value, problem = _parse_json(as_text(content, label))
    if problem is not None and not one_by_one:
        raise DataError(f"{label}: {problem}")
    if isinstance(value, dict):
        value = _only_list(value)
    if isinstance(value, list):
        return (_as_row(f"{label}, item {number}", entry) for number, entry in enumerate(value, start=1))
    if one_by_one:
        return _json_lines(content, label)
    raise DataError(f"{label}: one JSON {_json_kind(value)}; objects are needed: one on each line, or a list of them")


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parsed(line: bytes) -> tuple[Any, str | None]:
    try:
        return _parse_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "not UTF-8: save the file as UTF-8"


def _only_list(value: dict[str, Any]) -> list[Any]:
    """The rows of an object: its only list of objects, or the object itself. A list of chat turns is part of a row."""
    lists = [
        entry
        for entry in value.values()
        if isinstance(entry, list)
        and entry
        and all(isinstance(one, dict) and not one.keys() & {"role", "from"} for one in entry)
    ]
    return lists[0] if len(lists) == 1 else [value]


def _json_lines(content: bytes, label: str) -> Iterator[Row]:
    """Read one JSON object per line. Blank lines are skipped, but counted in line numbers."""
    # Split at "\n" only: str.splitlines also splits at separators that JSON strings may hold (U+2028 and others).
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        source = f"{label}:{number}"
        value, problem = _parsed(line)
        yield _as_row(source, value) if problem is None else Row(source, problem=problem)


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


# --- tables ---


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read cells of any length. Its default limit of 128 KiB is too small for documents."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(text: str, delimiter: str) -> Any:
    # newline="" keeps line breaks inside quoted cells; strict refuses a quote that is not closed.
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _sniffed(text: str, usual: str) -> str:
    """The delimiter of a table: the usual one if the first records fit, else the only other one under which they do.

    Records fit if they all have the same number of cells, and more than one. Spreadsheets in Europe write semicolons.
    """
    widths = {}
    with _long_cells():
        for delimiter in _DELIMITERS:
            try:
                found = [len(cells) for cells in islice(_records(text, delimiter), _SNIFFED) if cells]
            except csv.Error:
                continue
            if len(found) > 1 and len(set(found)) == 1 and found[0] > 1:
                widths[delimiter] = found[0]
    if usual in widths or not widths:
        return usual
    return max(widths, key=lambda delimiter: widths[delimiter])


def _read_table(text: str, label: str, usual: str, notes: list[str]) -> Iterator[Row]:
    """Read a header line and one record per row. Cells may hold quoted delimiters, quotes and line breaks."""
    skipped, delimiter = 0, ""
    head, _, rest = text.partition("\n")
    if head.startswith("sep=") and head.rstrip("\r")[4:] in _DELIMITERS:  # Excel's own way to name it
        text, delimiter, skipped = rest, head.rstrip("\r")[4:], 1
    delimiter = delimiter or _sniffed(text, usual)
    if delimiter != usual:
        notes.append(f"{label}: read as a table whose columns are separated by {_DELIMITERS[delimiter]}")
    reader = _records(text, delimiter)
    rows: list[Row] = []
    header: list[str] | None = None
    end = 0  # a record may span several lines; its first line names it
    with _long_cells():
        try:
            for cells in reader:
                source, end = f"{label}:{end + 1 + skipped}", reader.line_num
                if not cells:
                    continue
                if header is None:
                    header = _checked_header(cells, source)
                else:
                    rows.append(_table_row(source, header, cells, delimiter))
        except csv.Error:
            raise DataError(
                f"{label}:{end + 1 + skipped}: the quotes of this record do not match: quote cells that hold "
                f'{_DELIMITERS[delimiter]}, quotes or line breaks, and double every quote inside them ("")'
            ) from None
    return iter(rows)


def _checked_header(cells: list[str], source: str) -> list[str]:
    """The column names. Duplicates are refused."""
    header = [cell.strip() for cell in cells]
    if len(set(header)) < len(header):
        raise DataError(
            f"{source}: the header names a column twice (or leaves two empty): give each its own name; does the file have a "
            "header?"
        )
    return header


def _table_row(source: str, header: list[str], cells: list[str], delimiter: str) -> Row:
    """Convert a record to a row. An empty cell is a missing value."""
    if len(cells) != len(header):
        problem = (
            f"{len(cells)} cells under {len(header)} columns, which are separated by {_DELIMITERS[delimiter]}: quote cells "
            "that hold the delimiter"
        )
        return Row(source, problem=problem)
    return Row(source, {name: cell or None for name, cell in zip(header, cells, strict=True)})


# --- lists of texts ---


def read_texts(path: Path, label: str) -> list[str]:
    """Read a list of texts: one a line, JSON (one string or object a line, or a list of them), or a table with one column.

    Args:
        path: an existing file.
        label: its name in messages.

    Raises:
        DataError: the file cannot be read, or an object or table does not say which of its values is the text.
    """
    content = read_bytes(path, label)
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = list(_read_table(as_text(content, label), label, "\t" if path.suffix.lower() == ".tsv" else ",", []))
        return [_one_text(row.values, row.source) for row in rows if row.problem is None]
    text = as_text(content, label)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    value, problem = _parse_json(text) if text.lstrip()[:1] == "[" else (None, "")
    if problem is None and isinstance(value, list):
        return [_one_text(entry, f"{label}, item {number}") for number, entry in enumerate(value, start=1)]
    if lines and isinstance(_parse_json(lines[0][1])[0], str | dict):
        found = []
        for number, line in lines:
            value, problem = _parse_json(line)
            if problem is not None:
                raise DataError(f"{label}:{number}: {problem}")
            found.append(_one_text(value, f"{label}:{number}"))
        return found
    stripped = text.strip()
    if stripped.startswith(("[{", '["', "{")) or (stripped[:1] == "[" and lines[0][1].strip() == "["):
        raise DataError(f"{label}: begins like JSON and is {_parse_json(text)[1]}")
    return [line.strip() for _, line in lines]


def _one_text(value: object, place: str) -> str:
    """The text of an entry: a string, an object's only string, or its value under a usual name."""
    found = value
    if isinstance(value, dict) or hasattr(value, "items"):
        entries = {key: entry for key, entry in dict(value).items() if isinstance(entry, str)}  # type: ignore[call-overload]
        usual = [entries[name] for name in ("text", "refusal", "answer", "response", "completion") if name in entries]
        found = usual[0] if usual else next(iter(entries.values())) if len(entries) == 1 else None
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{place}: holds no single text; write a string, or an object with the key text")
    return found.strip()
