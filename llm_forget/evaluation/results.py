"""Write and read the results of an evaluation, and list them as numbers with dotted names.

``<suite>.json`` holds the aggregates, ``<suite>.parquet`` the scores of single examples. In memory a result is one
dictionary, with the scores at ``sets.<name>.examples`` and ``capability.correct``.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.schema import check_results
from llm_forget.utils.files import file_digest, write_json

if TYPE_CHECKING:
    import pandas as pd

TEXT = "generated"  # the only text column; written only if the evaluation recipe sets keep_text
_CAPABILITY = "capability."  # prefix of the capability task's name in the column `set`

# Keys of a result that hold no measurement of the model.
_BOOKKEEPING = "schema suite settings seconds warnings verdict scores controls"
_DETAILS = "examples correct components interval bounds"
_NO_MEASUREMENT = frozenset(f"{_BOOKKEEPING} {_DETAILS}".split())
_VALUES = ("value", "pvalue")  # keys under which a section stores its number


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        value: the number; None if nothing could be scored.
        low: lower end of its 95 % interval, or None.
        high: upper end, or None.
        n: number of examples, or None.
        forgotten: what means forgotten: "low", "high", "oracle" (near the oracle's value) or "none".
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    forgotten: str = "none"


@dataclass(frozen=True)
class StoredResults:
    """A result file. The scores of single examples are read only on request.

    Attributes:
        path: the JSON file.
        raw: its content.
        scores: dotted name → number, see ``named_scores``.
    """

    path: Path
    raw: dict[str, Any] = field(repr=False)
    scores: dict[str, Score] = field(repr=False)

    @property
    def suite(self) -> str:
        """The suite's name."""
        return str(self.raw["suite"])

    @property
    def forget_sets(self) -> tuple[str, ...]:
        """Names of the forget sets."""
        return tuple(name for name, found in self.raw["sets"].items() if found["forget"])

    @property
    def digests(self) -> dict[str, str]:
        """Set → digest of the ids of its examples."""
        return {name: str(found["digest"]) for name, found in self.raw["sets"].items()}

    @property
    def seconds(self) -> float:
        """Duration of the evaluation in seconds."""
        return float(sum((self.raw.get("seconds") or {}).values()))

    def examples(self) -> pd.DataFrame:
        """Scores of single examples, one row per example: ``set``, ``id``, the metrics, and ``generated`` if text was kept.

        Questions of a capability task belong to no set and are left out.

        Raises:
            UserError: the Parquet file is missing or belongs to another evaluation.
        """
        import pandas as pd

        columns = self._columns()
        frame = pd.DataFrame({"set": pd.Series(dtype=str), "id": pd.Series(dtype=str)} | columns)
        frame = frame[frame["set"].isin(list(self.raw["sets"]))].dropna(axis="columns", how="all")
        return frame.reindex(columns=list(dict.fromkeys(("set", "id", *frame.columns))))

    def with_examples(self) -> dict[str, Any]:
        """The whole result as one dictionary, as ``run_suite`` returned it.

        Raises:
            UserError: the Parquet file is missing or belongs to another evaluation.
        """
        sets = {name: {**one, "examples": {}} for name, one in self.raw["sets"].items()}
        whole = {key: value for key, value in self.raw.items() if key != "scores"} | {"sets": sets}
        if whole.get("capability"):
            whole["capability"] = dict(whole["capability"])
        columns = self._columns()
        if columns:
            _put_back(whole, columns)
        return whole

    def _columns(self) -> dict[str, list[Any]]:
        """Columns of the Parquet file; empty if the result has no scores of single examples."""
        stored = self.raw.get("scores")
        if stored is None:
            return {}
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # comes with datasets

        file = self.path.parent / stored["file"]
        if not file.is_file() or file_digest(file) != stored["sha256"]:
            state = "is missing" if not file.is_file() else "belongs to another evaluation"
            raise UserError(f"{file} {state}; keep it in the same folder as {self.path.name}, or evaluate again")
        table = pq.read_table(file)
        return {name: table[name].to_pylist() for name in table.column_names}


def open_results(path: Path) -> StoredResults:
    """Read and check a result file, without the scores of single examples.

    Args:
        path: ``<run>/eval/<suite>.json``.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the eval/<suite>.json of a run") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; give the eval/<suite>.json of a run, or evaluate the run again") from None
    check_results(found, str(path))
    return StoredResults(path, found, named_scores(found))


def read_results(path: Path) -> dict[str, Any]:
    """Read a result file with the scores of single examples.

    Args:
        path: ``<run>/eval/<suite>.json``.

    Raises:
        UserError: a file is missing, damaged or of another version, or the two belong to different evaluations.
    """
    return open_results(path).with_examples()


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results. Each file is written atomically, the JSON file last.

    Args:
        results: the result of ``run_suite``.
        path: the JSON file; the scores of single examples go to a Parquet file of the same name.

    Raises:
        UserError: the results do not fit the schema.
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


def named_scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """All measured numbers of a result by dotted name, for example ``forget.probability`` or ``capability.acc``.

    Every mapping with a ``value`` or ``pvalue`` counts as a number, at any depth, so a new section needs no code here.
    Metrics of a set are named ``<set>.<metric>``.

    Args:
        results: a result, with or without scores of single examples.
    """
    found: dict[str, Score] = {}
    for name, one in results["sets"].items():
        found.update(_walk(one["metrics"], name))
        found.update(_walk({key: value for key, value in one.items() if key != "metrics"}, name))
    found.update(_walk({key: value for key, value in results.items() if key != "sets"}, ""))
    return found


def _walk(entries: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Score]]:
    for key, entry in entries.items():
        if key in _NO_MEASUREMENT or not isinstance(entry, Mapping):
            continue
        name = f"{prefix}.{key}" if prefix else str(key)
        kept = next((known for known in _VALUES if known in entry), None)
        if kept is None:
            yield from _walk(entry, name)
        else:
            low, high, n = entry.get("low"), entry.get("high"), entry.get("n")
            yield name, Score(entry[kept], low, high, n, str(entry.get("forgotten", "none")))


def as_json(value: Any) -> Any:
    """Convert a value for JSON: dataclasses and arrays become plain values, NaN and ±∞ become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    import pyarrow as pa  # comes with datasets
    import pyarrow.parquet as pq

    labels = dict.fromkeys(key for row in rows for key in row if key not in ("set", "id", TEXT))
    columns: dict[str, Any] = {key: pa.array([row[key] for row in rows], pa.string()) for key in ("set", "id")}
    for label in labels:
        # from_pandas=False keeps NaN (not scored) distinct from null (the set has no such metric)
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


def _put_back(whole: dict[str, Any], columns: Mapping[str, list[Any]]) -> None:
    """Put the scores of single examples back in their place in the result."""
    labels = [label for label in columns if label not in ("set", "id")]
    for index, (name, one) in enumerate(zip(columns["set"], columns["id"], strict=True)):
        scores = {label: as_json(columns[label][index]) for label in labels if columns[label][index] is not None}
        if name.startswith(_CAPABILITY):
            whole["capability"].setdefault("correct", {})[one] = [bool(scores["acc"]), bool(scores["acc_norm"])]
        else:
            whole["sets"][name]["examples"][one] = scores
