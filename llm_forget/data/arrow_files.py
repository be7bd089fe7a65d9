"""Rows of Parquet and Arrow files, and of folders that ``Dataset.save_to_disk`` wrote, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_forget.data.row import MOST_ROWS, Row, too_many_rows
from llm_forget.errors import DataError

# Rows that are decoded at once. Flat columns hold a repeated text once; nested ones hold it once per row.
_BATCH, _NESTED_BATCH = 1024, 64
# A row group may hold this many values (of nested lists too) and bytes before compression.
_MOST_VALUES = 50_000_000
_MOST_BYTES = 1 << 30
# Files with more rows than this in fewer bytes than rows repeat one text over and over.
_PLAUSIBLE_ROWS = 100_000


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of a ``Dataset`` or ``DatasetDict`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved_dataset(folder: Path, label: str, split: str, notes: list[str]) -> Iterator[Row]:
    """Read a folder of ``save_to_disk``.

    Args:
        folder: the folder.
        label: its name in messages.
        split: the split of a ``DatasetDict``. If it has only one split, that is read.
        notes: gets a line if another split is read.

    Raises:
        DataError: the folder is damaged, has no such split, or holds too many rows.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        # only the type, because some messages of datasets quote a row
        raise DataError(
            f"{label}: a folder of save_to_disk that cannot be read ({type(error).__name__}); save it again, or write "
            "JSON lines with to_json"
        ) from None
    if isinstance(found, DatasetDict):
        if split not in found and len(found) != 1:
            raise DataError(f"{label}: has no split {split}; set split to one of {', '.join(sorted(found))}")
        if split not in found:
            split = next(iter(found))
            notes.append(f"{label}: read the split {split}, the only one")
        found = found[split]
    return _table_rows((batch for batch in found.with_format("arrow").iter(batch_size=_NESTED_BATCH)), label)


def read_parquet(path: Path, label: str, limit: int | None) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        DataError: it cannot be read, or it would take far more memory than any data set for a run.
    """
    # pyarrow comes with datasets.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        texts = [
            one.name for one in file.schema_arrow if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)
        ]
        # a text that is repeated in many rows is then held once
        file = pq.ParquetFile(path, read_dictionary=texts)
    except (pa.ArrowException, OSError, ValueError):
        raise _unreadable(label, "Parquet") from None
    _check_size(file.metadata, path.stat().st_size, label, limit)
    nested = any(pa.types.is_nested(one.type) for one in file.schema_arrow)
    batches = file.iter_batches(batch_size=_NESTED_BATCH if nested else _BATCH)
    return _table_rows(_guarded(batches, label, "Parquet"), label)


def read_arrow(path: Path, label: str) -> Iterator[Row]:
    """The rows of an Arrow file (stream or random access format)."""
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_stream(source)
            batches = iter(reader)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
    except (pa.ArrowException, OSError, ValueError):
        raise _unreadable(label, "Arrow") from None
    slices = (batch.slice(at, _NESTED_BATCH) for batch in batches for at in range(0, batch.num_rows, _NESTED_BATCH))
    return _table_rows(_guarded(slices, label, "Arrow"), label)


def _unreadable(label: str, kind: str) -> DataError:
    return DataError(
        f"{label}: not {'an' if kind == 'Arrow' else 'a'} {kind} file that can be read; write it again, or give JSONL"
    )


def _check_size(metadata: Any, size: int, label: str, limit: int | None) -> None:
    """Refuse a Parquet file that its own metadata says is far too large."""
    rows = metadata.num_rows
    if limit is None and rows > MOST_ROWS:
        raise too_many_rows(label, rows)
    if limit is None and rows > max(_PLAUSIBLE_ROWS, size):
        raise DataError(
            f"{label}: holds {rows:,} rows in {size:,} bytes, so they repeat the same values; remove the repeated rows, or set "
            "limit"
        )
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        values = max((group.column(one).num_values for one in range(group.num_columns)), default=0)
        if values > _MOST_VALUES or group.total_byte_size > _MOST_BYTES:
            raise DataError(
                f"{label}: a row group holds {values:,} values in {group.total_byte_size:,} bytes, too many to read at once; "
                "write smaller row groups, or give JSONL"
            )


def _guarded(batches: Any, label: str, kind: str) -> Iterator[Any]:
    """The batches, with errors of pyarrow as messages."""
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowException, OSError, ValueError):
        raise _unreadable(label, kind) from None


def _table_rows(batches: Iterator[Any], label: str) -> Iterator[Row]:
    """The rows of tables or record batches."""
    start = 1
    for batch in batches:
        columns = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
        for at in range(batch.num_rows):
            yield Row(f"{label}, row {start + at}", {name: values[at] for name, values in columns.items()})
        start += batch.num_rows


def _values(column: Any) -> list[Any]:
    """The Python values of a column. Equal texts of a dictionary share one object."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _values(chunk)]
    if not pa.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    indices = column.indices.to_pylist()
    texts = {index: column.dictionary[index].as_py() for index in set(indices) if index is not None}
    return [None if index is None else texts[index] for index in indices]
