"""Results on disk: ``<suite>.json`` with the aggregates, ``<suite>.parquet`` with the scores of single examples.

In memory they are one dictionary, in which the scores stand at ``sets.<name>.examples`` and ``capability.correct``.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.schema import check_results
from llm_forget.utils.files import file_digest, write_json

TEXT = "generated"  # the only column of text, there only where a recipe says keep_text
_CAPABILITY = "capability."  # what the task's rows are called in the column `set`


def as_json(value: Any) -> Any:
    """What JSON can hold: dataclasses and arrays taken apart, numbers that are none (NaN, ±∞) as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results, each file whole or not at all, the JSON last.

    Args:
        results: as ``run_suite`` returns them.
        path: of the JSON file; the scores go beside it.

    Raises:
        UserError: they are no valid results.
    """
    plain = as_json(results)
    rows = list(_rows(plain))
    stored = _without_scores(plain)
    stored["scores"] = None
    check_results(stored, path.name)
    if rows:
        file = path.with_suffix(".parquet")
        _write_parquet(rows, file)
        has_text = any(TEXT in row for row in rows)
        stored["scores"] = {"file": file.name, "rows": len(rows), "sha256": file_digest(file), "text": has_text}
    write_json(path, stored)


def read_results(path: Path) -> dict[str, Any]:
    """Read what ``write_results`` wrote.

    Raises:
        UserError: a file is missing or damaged, of another version, or the two are not of one evaluation.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a run's eval/<suite>.json") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; give a run's eval/<suite>.json") from None
    check_results(found, str(path))
    scores = found.pop("scores", None)
    for one in found["sets"].values():
        one["examples"] = {}
    if scores is not None:
        _put_back(found, path.parent / scores["file"], scores["sha256"])
    return dict(found)


def _rows(plain: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in plain["sets"].items():
        for one, scores in found.get("examples", {}).items():
            yield {"set": name, "id": one, **scores}
    capability = plain.get("capability") or {}
    for one, (acc, norm) in (capability.get("correct") or {}).items():
        yield {"set": _CAPABILITY + capability["task"], "id": one, "acc": float(acc), "acc_norm": float(norm)}


def _without_scores(plain: Mapping[str, Any]) -> dict[str, Any]:
    sets = {
        name: {key: value for key, value in found.items() if key != "examples"} for name, found in plain["sets"].items()
    }
    stored = {**plain, "sets": sets}
    if plain.get("capability"):
        stored["capability"] = {key: value for key, value in plain["capability"].items() if key != "correct"}
    return stored


def _write_parquet(rows: list[dict[str, Any]], file: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]  # comes with datasets
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    labels = dict.fromkeys(key for row in rows for key in row if key not in ("set", "id", TEXT))
    columns: dict[str, Any] = {key: pa.array([row[key] for row in rows], pa.string()) for key in ("set", "id")}
    for label in labels:
        # from_pandas=False: NaN ("not scored") stays apart from null ("not of this set")
        values = [_float(row[label]) if label in row else None for row in rows]
        columns[label] = pa.array(values, pa.float64(), from_pandas=False)
    if any(TEXT in row for row in rows):
        columns[TEXT] = pa.array([row.get(TEXT) for row in rows], pa.string())
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.parent / f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        pq.write_table(pa.table(columns), partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _put_back(found: dict[str, Any], file: Path, digest: str) -> None:
    import pyarrow.parquet as pq

    if not file.is_file() or file_digest(file) != digest:
        state = "is missing" if not file.is_file() else "is of another evaluation"
        raise UserError(f"{file} {state}, and {file.stem}.json needs it: keep the two together, or measure again")
    table = pq.read_table(file)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    names, ids = columns.pop("set"), columns.pop("id")
    for index, (name, one) in enumerate(zip(names, ids, strict=True)):
        scores = {label: as_json(values[index]) for label, values in columns.items() if values[index] is not None}
        if name.startswith(_CAPABILITY):
            found["capability"].setdefault("correct", {})[one] = [bool(scores["acc"]), bool(scores["acc_norm"])]
        else:
            found["sets"][name]["examples"][one] = scores
