"""Compare runs: the Pareto front, and every metric's change from a baseline with its interval."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.pairs import paired_change
from llm_forget.evaluation.results import open_results
from llm_forget.runs.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_FORGET, DEFAULT_UTILITY = "forget.probability", "model_utility.arithmetic"


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metric columns of a table of runs, without their ``.low``, ``.high`` and ``.n``."""
    return [name for name in frame.attrs.get("directions", {}) if name in frame.columns]


def check_column(frame: pd.DataFrame, column: str) -> None:
    """Check that a table has a column.

    Raises:
        UserError: it does not; the message names the nearest metrics.
    """
    if column in frame.columns:
        return
    near = difflib.get_close_matches(column, metrics_of(frame), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; were the runs evaluated (llm-forget evaluate)?"
    raise UserError(f"no run has {column}{hint}")


def pareto(
    frame: pd.DataFrame,
    *,
    forget: str = DEFAULT_FORGET,
    utility: str = DEFAULT_UTILITY,
    forgotten: str | None = None,
) -> pd.DataFrame:
    """The runs that no other run beats in both forgetting and utility.

    A run is beaten by one that is at least as good in both and better in one. Only unlearned runs compete if the table has
    roles, because the oracle is the goal and not a rival.

    Args:
        frame: from ``load_runs``.
        forget: a forget metric's column.
        utility: a column in which more is better.
        forgotten: what means forgotten: "low", "high", or "oracle" for a value near the oracle's; by default the metric's own.
            Without exactly one oracle in the table, "oracle" is the distance from ½, which suits an attack's AUC.

    Returns:
        The rows on the front, from the most forgotten to the least.

    Raises:
        UserError: a column is unknown.
    """
    for column in (forget, utility):
        check_column(frame, column)
    end = forgotten or frame.attrs.get("directions", {}).get(forget, "low")
    goal = _goal(frame, forget)

    def cost(value: float) -> float:
        return -float(value) if end == "high" else abs(value - goal) if end == "oracle" else float(value)

    rows = frame[frame["role"] == "unlearned"] if "role" in frame else frame
    rows = rows.dropna(subset=[forget, utility])
    points = [(cost(a), -float(b)) for a, b in zip(rows[forget], rows[utility], strict=True)]
    kept = [not any(_beats(other, own) for other in points) for own in points]
    return rows.loc[np.array(kept, dtype=bool)].sort_values(forget, key=lambda column: column.map(cost))


def _goal(frame: pd.DataFrame, forget: str) -> float:
    """The oracle's value of a metric, or ½."""
    oracle = frame.loc[frame["role"] == "oracle", forget].dropna() if "role" in frame else frame[forget][:0]
    return float(oracle.iloc[0]) if len(oracle) == 1 else 0.5


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def compare(frame: pd.DataFrame, baseline: str = "target", *, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Every run's metrics and their change from a baseline.

    If both runs have scores of the same examples, the change has a 95 % interval over pairs: each question
    is its own control, so the interval is narrower than the two single ones suggest. A metric that is not the mean of
    scores of single examples (model utility, a p-value) has a change without an interval. A metric of a set with other
    examples than the baseline's has no change.

    Args:
        frame: from ``load_runs``.
        baseline: a run's name, its last part, or a role (``target``, ``oracle``).
        metrics: the columns; by default all metrics that have a plain name.

    Returns:
        One row for each run and metric, index (run, metric): ``value``, ``low``, ``high``, ``n``, ``baseline``, ``change``,
        ``change_low``, ``change_high``, ``forgotten``.

    Raises:
        UserError: the baseline or a metric does not exist.
    """
    base = find_row(frame, baseline)
    chosen = list(metrics) if metrics is not None else [name for name in metrics_of(frame) if "/" not in name]
    for column in chosen:
        check_column(frame, column)
    before = _sets(frame, base)
    rows, keys = [], []
    for name in frame.index:
        after = {} if name == base else _sets(frame, name)
        for metric in chosen:
            if not is_number(frame.loc[name, metric]):
                continue
            low, high = _interval(metric, after, before)
            rows.append(
                {
                    **{key: frame.loc[name].get(f"{metric}{end}") for key, end in _ENDS.items()},
                    "baseline": frame.loc[base, metric],
                    "change": _change(frame.loc[name], frame.loc[base], metric),
                    "change_low": low,
                    "change_high": high,
                    "forgotten": frame.attrs["directions"].get(metric, "none"),
                }
            )
            keys.append((name, metric))
    names = {"run": [run for run, _ in keys], "metric": [metric for _, metric in keys]}
    table = make_frame(rows, index=names, columns=_COLUMNS)
    table.attrs = {"baseline": base}
    return table


_COLUMNS = ["value", "low", "high", "n", "baseline", "change", "change_low", "change_high", "forgotten"]
_ENDS: Mapping[str, str] = {"value": "", "low": ".low", "high": ".high", "n": ".n"}


def find_row(frame: pd.DataFrame, wanted: str) -> str:
    """Find a run in a table by its name, the last part of its name, or its role.

    Raises:
        UserError: no run fits, or several do.
    """
    names = [str(name) for name in frame.index]
    for fits in (
        [name for name in names if name == wanted],
        [name for name in names if name.rsplit("/", 1)[-1] == wanted],
        [name for name, role in zip(names, frame.get("role", []), strict=False) if role == wanted],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise UserError(f"{wanted} could be any of {', '.join(fits)}; give the full name")
    raise UserError(f"no run has the name or role {wanted}; the runs are {', '.join(names) or 'none'}")


def _change(row: Any, base: Any, metric: str) -> float | None:
    if not is_number(row[metric]) or not is_number(base[metric]):
        return None
    digests = [one.get(f"digest.{metric.partition('.')[0]}") for one in (row, base)]
    alike = digests[0] == digests[1] or not all(isinstance(one, str) for one in digests)
    return float(row[metric]) - float(base[metric]) if alike else None


def is_number(value: Any) -> bool:
    """Whether a value of a table is a number: not None, NaN or text. Numbers of numpy are included."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _sets(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """The sets of a run's results with the scores of single examples; empty if the suite was not run on it.

    Scores that cannot be read are left out; ``frame.attrs["problems"]`` names them.
    """
    suite, path = frame.attrs.get("suite"), frame.loc[name].get("path")
    file = Path(str(path)) / "eval" / f"{suite}.json"
    if not (path and suite and file.is_file()):
        return {}
    try:
        stored = open_results(file)
    except UserError:
        return {}
    try:
        return dict(stored.with_examples()["sets"])
    except UserError:
        return dict(stored.without_scores().with_examples()["sets"])


def _interval(metric: str, after: dict[str, Any], before: dict[str, Any]) -> tuple[float | None, float | None]:
    part, _, label = metric.partition(".")
    if part not in after or part not in before:
        return None, None
    return paired_change(after[part], before[part], label) or (None, None)
