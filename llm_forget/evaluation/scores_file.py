"""The Parquet file with the scores of single examples: written by its digest, and read within limits.

The file may come from somebody else. Its size, types and rows are checked before they are turned into Python objects.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.files import new_file

TEXT = "generated"  # the only text column; written only if the evaluation recipe sets keep_text
KEYS = ("set", "id")
Columns = dict[str, list[Any]]

MOST_ROWS = 1_000_000
MOST_NUMBERS = 20_000_000  # rows times columns
MOST_BYTES = 256 << 20  # of texts, and of a file when it is unpacked


def write_scores(rows: Sequence[Mapping[str, Any]], file: Path) -> dict[str, Any]:
    """Write the scores of examples next to a result file.

    The digest is part of the file's name, so two evaluations that write the same results at once cannot mix their files.

    Args:
        rows: one mapping per example: ``set``, ``id``, and a number for each label.
        file: the JSON file of the results.

    Returns:
        The ``scores`` section of the results.
    """
    import pyarrow as pa  # type: ignore[import-untyped]  # comes with datasets
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    labels = dict.fromkeys(key for row in rows for key in row if key not in (*KEYS, TEXT))
    columns: dict[str, Any] = {key: pa.array([row[key] for row in rows], pa.string()) for key in KEYS}
    for label in labels:
        # from_pandas=False keeps NaN (not scored) distinct from null (the set has no such metric)
        values = [_float(row[label]) if label in row else None for row in rows]
        columns[label] = pa.array(values, pa.float64(), from_pandas=False)
    if any(TEXT in row for row in rows):
        columns[TEXT] = pa.array([row.get(TEXT) for row in rows], pa.string())
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    content = buffer.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    final = file.with_name(f"{file.stem}.{digest[:16]}.parquet")
    with new_file(final) as partial:
        partial.write_bytes(content)
    return {"file": final.name, "rows": len(rows), "sha256": digest, "text": TEXT in columns}


def is_scores_name(name: str, stem: str) -> bool:
    """Whether a name is one that ``write_scores`` gives to the scores of the results ``stem``, in any version."""
    return re.fullmatch(rf"{re.escape(stem)}(\.[0-9a-f]{{16}})?\.parquet", name) is not None


def read_scores(folder: Path, stated: Mapping[str, Any], *, text: bool = False) -> Columns:
    """Read the columns of a scores file.

    Args:
        folder: the folder of the results.
        stated: the ``scores`` section of the results.
        text: whether to read the generated answers too.

    Returns:
        ``set``, ``id`` and one column for each label; null is None.

    Raises:
        UserError: the file is missing, of another evaluation, damaged, or larger than any evaluation.
    """
    file = folder / stated["file"]
    if file.parent != folder or file.name in ("", ".", ".."):
        raise UserError(f"the scores are said to be in {stated['file']}, which is outside the results' folder")
    content = _content(file)
    if content is None or hashlib.sha256(content).hexdigest() != stated["sha256"]:
        state = "is missing" if content is None else "belongs to another evaluation"
        raise UserError(f"{file} {state}; keep it in the same folder as the results, or evaluate again")
    import pyarrow as pa

    try:
        return _read(content, stated["rows"], text)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{file} cannot be read: {str(error) or type(error).__name__}; evaluate again") from None


def _content(file: Path) -> bytes | None:
    """The bytes of a file: pyarrow cannot open a path that is not UTF-8. None if it is missing."""
    try:
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} has more than {MOST_BYTES >> 20} MB, more than any evaluation; evaluate again")
        return file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _read(content: bytes, rows: int, text: bool) -> Columns:
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]
    import pyarrow.parquet as pq

    texts = [name for name in pq.read_schema(pa.BufferReader(content)).names if name in (*KEYS, TEXT)]
    with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts) as opened:
        meta, schema = opened.metadata, opened.schema_arrow
        unpacked = sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
        names = [name for name in schema.names if text or name != TEXT]
        if meta.num_rows != rows:
            raise ValueError(f"it has {meta.num_rows} rows, and the results say {rows}")
        if rows > MOST_ROWS or rows * len(names) > MOST_NUMBERS or unpacked > MOST_BYTES:
            raise ValueError(
                f"{rows} rows of {len(names)} columns, {unpacked >> 20} MB, are more than any evaluation has"
            )
        if len({*schema.names}) < len(schema.names) or not {*KEYS} <= {*schema.names}:
            raise ValueError("it lacks the columns set and id, or has a column twice")
        wrong = [name for name in names if not _fits(schema.field(name).type, name in (*KEYS, TEXT))]
        if wrong:
            raise ValueError(f"the column {wrong[0]} has the type {schema.field(wrong[0]).type}")
        table = opened.read(columns=names)
    for name in names:
        if pa.types.is_dictionary(table[name].type):  # lengths are known before the texts are written out
            chunks = [one.indices.drop_null() for one in table[name].chunks]
            sizes = [pc.binary_length(one.dictionary) for one in table[name].chunks]
            total = sum(pc.sum(size.take(index)).as_py() or 0 for size, index in zip(sizes, chunks, strict=True))
            if total > MOST_BYTES:
                raise ValueError(f"the texts of the column {name} have {total >> 20} MB")
    columns = {name: table[name].to_pylist() for name in names}
    if None in columns["set"] or None in columns["id"]:
        raise ValueError("a row has no set or no id")
    if len(set(zip(columns["set"], columns["id"], strict=True))) < rows:
        raise ValueError("a row occurs twice")
    return columns


def _fits(kind: Any, is_text: bool) -> bool:
    import pyarrow as pa

    if is_text:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(value))
    return bool(pa.types.is_floating(kind) or pa.types.is_null(kind))


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
