"""Read what an evaluation wrote: the one place that knows the files' form, tolerant of sections that it has never seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.errors import UserError
from llm_forget.utils.files import file_digest

if TYPE_CHECKING:
    import pandas as pd

# What a file holds beside measurements: how it was measured, scores of single examples, and bookkeeping.
_BOOKKEEPING = "schema settings seconds warnings verdict n n_nan interval bounds"
_NO_MEASUREMENT = frozenset(f"{_BOOKKEEPING} controls sets examples correct components".split())
_VALUES = ("value", "pvalue", "auc", "estimate")  # the names under which a section keeps its number
TEXT = "generated"  # the one column of text, there only where the evaluation's recipe said `keep_text: true`


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        value: the number, None where nothing could be scored.
        low: lower end of its 95 % interval, or None.
        high: upper end, or None.
        n: how many examples it is from, or None.
        forgotten: which end means forgotten: "low", "high" or "none".
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    forgotten: str = "none"


@dataclass(frozen=True)
class Results:
    """One evaluation of one model.

    Attributes:
        suite: its name.
        path: the JSON file.
        scores: dotted name → number: ``forget.probability``, ``model_utility.arithmetic``, ``capability.acc``, …
        forget_sets: the sets that should be forgotten.
        digests: set → digest of its examples' ids.
        seconds: time that measuring took.
        raw: the file as it is.
    """

    suite: str
    path: Path
    scores: dict[str, Score]
    forget_sets: tuple[str, ...]
    digests: dict[str, str]
    seconds: float
    raw: dict[str, Any] = field(repr=False)

    def examples(self) -> pd.DataFrame:
        """Scores of single examples, a row each: columns ``set``, ``id``, the metrics, and ``generated`` where text was kept.

        Read when asked for: from the Parquet file that the JSON names, or from the JSON of schema 1. Rows of a capability
        task are left out: they are questions of no set.

        Raises:
            UserError: the Parquet file is missing, or of another evaluation.
        """
        import pandas as pd

        stored = self.raw.get("scores")
        if stored:
            file = self.path.parent / stored["file"]
            if not file.is_file() or file_digest(file) != stored["sha256"]:
                raise UserError(
                    f"{file} is missing or of another evaluation; keep it beside {self.path.name}, or measure again"
                )
            frame = _tidy(pd.read_parquet(file))
            return frame[frame["set"].isin(list(self.raw.get("sets") or {}))].dropna(axis="columns", how="all")
        rows = [
            {"set": name, "id": example, **scores}
            for name, found in self.raw.get("sets", {}).items()
            for example, scores in (found.get("examples") or {}).items()
        ]
        return _tidy(pd.DataFrame(rows))

    def verdict(self) -> list[str]:
        """What the evaluation itself concluded, in sentences."""
        told = self.raw.get("verdict")
        sentences = list(_sentences(told))
        for name, tests in (self.raw.get("forget_quality") or {}).items():
            for definition, test in tests.items() if isinstance(tests, Mapping) else ():
                if isinstance(test, Mapping) and isinstance(test.get("verdict"), str):
                    sentences.append(f"Forget quality of {name} ({definition} truth ratio): {test['verdict']}.")
        return sentences


def read_results(path: Path) -> Results:
    """Read one result file.

    Args:
        path: ``<run>/eval/<suite>.json``.

    Raises:
        UserError: it cannot be read, or holds no results.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); measure the run again") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; measure the run again") from None
    if not isinstance(raw, dict) or not ({"sets", "capability"} & raw.keys()):
        raise UserError(f"{path} holds no results; it should have `sets` or `capability`: measure the run again")
    sets = {name: found for name, found in (raw.get("sets") or {}).items() if isinstance(found, Mapping)}
    seconds = raw.get("seconds")
    return Results(
        suite=str(raw.get("suite") or path.stem),
        path=path,
        scores=_scores(raw, sets),
        forget_sets=tuple(name for name, found in sets.items() if found.get("forget")),
        digests={name: str(found["digest"]) for name, found in sets.items() if found.get("digest")},
        seconds=sum(seconds.values()) if isinstance(seconds, Mapping) else float(seconds or 0.0),
        raw=raw,
    )


def _scores(raw: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for name, one in sets.items():
        found.update(_walk(one.get("metrics") or {}, name))
        found.update(_walk({key: value for key, value in one.items() if key != "metrics"}, name))
    found.update(_walk(raw, ""))
    return found


def _walk(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Score]]:
    """Every number with a name in a section, however deep: sections that are new need no line here."""
    for key, item in value.items():
        if key in _NO_MEASUREMENT or not isinstance(item, Mapping):
            continue
        name = f"{prefix}.{key}" if prefix else str(key)
        kept = next((known for known in _VALUES if known in item), None)
        if kept is None:
            yield from _walk(item, name)
        else:
            yield name, _score(item, kept)


def _score(item: Mapping[str, Any], kept: str) -> Score:
    n = item.get("n")
    return Score(
        value=_number(item[kept]),
        low=_number(item.get("low")),
        high=_number(item.get("high")),
        n=n if isinstance(n, int) else None,
        forgotten=str(item.get("forgotten", "none")),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sentences(told: Any) -> Iterator[str]:
    if isinstance(told, str):
        yield told if told.rstrip().endswith((".", "!", "?")) else f"{told.rstrip()}."
    elif isinstance(told, Mapping):
        for item in told.values():
            yield from _sentences(item)
    elif isinstance(told, list):
        for item in told:
            yield from _sentences(item)


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """``set`` and ``id`` first, then numbers, then the text; columns that are neither stay away."""
    for wanted, others in {"set": ("set_name", "split"), "id": ("example_id", "example")}.items():
        for other in others:
            if wanted not in frame and other in frame:
                frame = frame.rename(columns={other: wanted})
    for wanted in ("set", "id"):
        if wanted not in frame:
            frame[wanted] = ""
    numbers = [name for name in frame.select_dtypes("number").columns if name not in ("set", "id")]
    text = [TEXT] if TEXT in frame else []
    return frame[["set", "id", *numbers, *text]]
