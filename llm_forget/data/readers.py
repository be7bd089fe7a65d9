"""Read rows from files, folders of ``save_to_disk`` and the hub, each with its location.

This module does not interpret columns. A row that cannot be read is returned with a problem, so that all problems of a file are
reported at once. Only problems of the whole file are raised. Messages never hold a value of a row, because forget sets are
private.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llm_forget.data.arrow_files import is_saved_dataset, read_arrow, read_parquet, read_saved_dataset
from llm_forget.data.row import Row
from llm_forget.data.text_files import read_text_file
from llm_forget.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BARE_HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*")
# Names that say what a file holds. Other files are read if their content is JSON or a table.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_PARQUET, _ARROW = b"PAR1", b"ARROW1"


def read_file(
    path: Path, label: str, split: str = "train", limit: int | None = None, notes: list[str] | None = None
) -> Iterator[Row]:
    """Read the rows of a file, or of a folder that ``save_to_disk`` wrote.

    Args:
        path: existing; from ``locate``.
        label: its name in messages, usually the path as the user wrote it.
        split: the split of a ``DatasetDict`` in a folder.
        limit: how many rows the caller will take; files that are too large may be read up to a limit.
        notes: gets lines for the user, such as a delimiter that was found.

    Returns:
        The rows in file order, as a stream if the format allows it.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    notes = [] if notes is None else notes
    if path.is_dir():
        return read_saved_dataset(path, label, split, notes)
    suffix, start = path.suffix.lower(), _first_bytes(path, label)
    if suffix == ".parquet" or start.startswith(_PARQUET):
        return read_parquet(path, label, limit)
    if suffix == ".arrow" or start == _ARROW:
        return read_arrow(path, label)
    rows = read_text_file(path, label, notes)
    if rows is None:
        raise DataError(
            f"{label}: files that end in {path.suffix or 'nothing'!r} are read if they hold JSON (one object per line, or a "
            f"list) or a table with a header; this one does not. Convert it: allowed are {', '.join(SUFFIXES)}; a plain text "
            'becomes one line {"text": ...}'
        )
    return rows


def _first_bytes(path: Path, label: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_ARROW))
    except OSError as error:
        raise DataError(f"{label}: cannot be read ({error.strerror}); check the file and its permissions") from None


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
        The existing file or folder of ``save_to_disk``, or None if ``path`` can only be an id on the hub.

    Raises:
        DataError: the path is another folder, or the file does not exist; the message names similar files.
    """
    found = Path(path).expanduser()
    if found.is_file():
        return found
    if found.is_dir():
        if is_saved_dataset(found):
            return found
        inside = sorted(entry.name for entry in found.iterdir() if entry.suffix.lower() in SUFFIXES)
        raise DataError(
            f"{path}: is a folder; name one file in it ({_listed(inside) or 'it holds none that can be read'}), or a folder that "
            "Dataset.save_to_disk wrote"
        )
    is_file_name = found.suffix.lower() in SUFFIXES or found.parent.is_dir()
    if _HUB_ID.fullmatch(path) and not is_file_name:
        return None
    # an old id on the hub has no owner; a name that is like a file here is a mistake in that name
    if _BARE_HUB_ID.fullmatch(path) and "did you mean" not in _nearest_files(found):
        return None
    raise DataError(f"{path}: no such file{_nearest_files(found)}; {_searched_from(found)}")


def _searched_from(wanted: Path) -> str:
    """Say where a path was searched, and what else may be given."""
    where = "" if wanted.is_absolute() else "relative paths start from the current folder; "
    return f"{where}give an existing {', '.join(SUFFIXES)} file or a hub id of the form owner/name"


def _nearest_files(missing: Path) -> str:
    """The files in the same folder with the most similar names."""
    if not missing.parent.is_dir():
        return f" (nor the folder {missing.parent})"
    names = sorted(entry.name for entry in missing.parent.iterdir() if entry.is_file())
    nearest = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    if nearest:
        return f", did you mean {' or '.join(nearest)}"
    readable = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return f"; that folder holds {_listed(readable)}" if readable else ""


def _listed(names: list[str], most: int = 8) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
