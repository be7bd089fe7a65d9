"""Write and read the results of an evaluation, and list them as numbers with dotted names.

``<suite>.json`` holds the aggregates, ``<suite>.<digest>.parquet`` the scores of single examples. In memory a result is one
dictionary, with the scores at ``sets.<name>.examples`` and ``capability.correct``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.schema import check_results
from llm_forget.evaluation.scores_file import Columns, is_scores_name, read_scores, write_scores
from llm_forget.utils.files import edits, write_record
from llm_forget.utils.safe_json import NotPlainJson, read_json

if TYPE_CHECKING:
    import pandas as pd

_CAPABILITY = "capability."  # prefix of the capability task's name in the column `set`

# Keys of a result that hold no measurement of the model.
_BOOKKEEPING = "schema suite settings model seconds warnings verdict scores controls checksum"
_DETAILS = "examples correct components interval bounds"
_NO_MEASUREMENT = frozenset(f"{_BOOKKEEPING} {_DETAILS}".split())
_MOST_SCORES = 5_000  # numbers of a file; each is four columns of a table
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

        columns = self.columns(text=True)
        frame = pd.DataFrame({"set": pd.Series(dtype=str), "id": pd.Series(dtype=str)} | columns)
        frame = frame[frame["set"].isin(list(self.raw["sets"]))].dropna(axis="columns", how="all")
        return frame.reindex(columns=list(dict.fromkeys(("set", "id", *frame.columns))))

    def with_examples(self) -> dict[str, Any]:
        """The whole result as one dictionary, as ``run_suite`` returned it.

        Raises:
            UserError: the Parquet file is missing or belongs to another evaluation.
        """
        sets = {name: {**one, "examples": {}} for name, one in self.raw["sets"].items()}
        whole = {key: value for key, value in self.raw.items() if key not in ("scores", "checksum")} | {"sets": sets}
        if whole.get("capability"):
            whole["capability"] = dict(whole["capability"])
        columns = self.columns(text=True)
        if columns:
            _put_back(whole, columns)
        return whole

    def columns(self, *, text: bool = False) -> Columns:
        """Columns of the Parquet file; empty if the result has no scores of single examples.

        Args:
            text: whether to read the generated answers, if the evaluation kept them.

        Raises:
            UserError: the file is missing or damaged, belongs to another evaluation, or has rows of an unknown set.
        """
        stored = self.raw.get("scores")
        if stored is None:
            return {}
        columns = read_scores(self.path.parent, stored, text=text)
        task = (self.raw.get("capability") or {}).get("task")
        known = {*self.raw["sets"], *([] if task is None else [_CAPABILITY + str(task)])}
        unknown = sorted(set(columns["set"]) - known)
        if unknown:
            raise UserError(
                f"{self.path.parent / stored['file']} has rows of the set {unknown[0]}, which {self.path.name} lacks"
            )
        return columns

    @property
    def edited(self) -> str:
        """Whether the file was edited: the end of a sentence about it, or nothing."""
        return edits(self.raw)

    def without_scores(self) -> StoredResults:
        """The same results without the scores of single examples, for a file of scores that cannot be read."""
        return replace(self, raw={**self.raw, "scores": None})


def open_results(path: Path) -> StoredResults:
    """Read and check a result file, without the scores of single examples.

    Args:
        path: ``<run>/eval/<suite>.json``.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        found = read_json(path)
    except NotPlainJson as error:
        raise UserError(f"{path} {error}; give the eval/<suite>.json of a run, or evaluate the run again") from None
    check_results(found, str(path))
    scores = named_scores(found)
    if len(scores) > _MOST_SCORES:
        raise UserError(f"{path} has {len(scores)} numbers; at most {_MOST_SCORES} are read")
    return StoredResults(path, found, scores)


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
        path: the JSON file; the scores of single examples go to a Parquet file, named after it and its own digest.

    Raises:
        UserError: the results do not fit the schema.
    """
    plain = as_json(results)
    rows = list(_rows(plain))
    stored = _without_scores(plain)
    stored["scores"] = None
    check_results(stored, path.name)
    if rows:
        stored["scores"] = write_scores(rows, path)
    before = _scores_of(path)
    write_record(path, stored)
    if before is not None and before != (stored["scores"] or {}).get("file"):
        with suppress(OSError):
            (path.parent / before).unlink(missing_ok=True)


def _scores_of(path: Path) -> str | None:
    """The name of the scores file of the results that lie at a path; None if there are none that we wrote."""
    try:
        name = str(read_json(path)["scores"]["file"])
    except (NotPlainJson, KeyError, TypeError):
        return None
    return name if is_scores_name(name, path.stem) else None


# What a two-sample test says besides its p-value: its D, and the p-value of the paired test.
_OF_A_TEST = (("D", "statistic", "low"), ("paired", "paired_pvalue", "high"))


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
        elif _is_number(entry[kept]) or entry[kept] is None:
            low, high, n = (one if _is_number(one) else None for one in map(entry.get, ("low", "high", "n")))
            yield name, Score(entry[kept], low, high, n, _direction(entry.get("forgotten")))
            for part, key, end in _OF_A_TEST:
                if _is_number(entry.get(key)):
                    yield f"{name}.{part}", Score(entry[key], n=n, forgotten=end)


def _is_number(value: Any) -> bool:
    """Whether a value of an unknown section is a number; what is none is passed over."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _direction(value: Any) -> str:
    return value if value in ("low", "high") else "none"


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


def _put_back(whole: dict[str, Any], columns: Mapping[str, list[Any]]) -> None:
    """Put the scores of single examples back in their place in the result."""
    labels = [label for label in columns if label not in ("set", "id")]
    for index, (name, one) in enumerate(zip(columns["set"], columns["id"], strict=True)):
        scores = {label: as_json(columns[label][index]) for label in labels if columns[label][index] is not None}
        if name.startswith(_CAPABILITY):
            whole["capability"].setdefault("correct", {})[one] = [bool(scores["acc"]), bool(scores["acc_norm"])]
        else:
            whole["sets"][name]["examples"][one] = scores
