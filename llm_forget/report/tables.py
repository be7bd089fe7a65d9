"""The tables of a page: cells with a text to read and a number to sort by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_forget.report.words import interval, number, plain
from llm_forget.runs.comparison import metrics_of

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_FIRST = ("probability", "rougeL_recall")


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by (None: by its text), and its interval, shown smaller."""

    text: str
    sort: float | None = None
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose columns can be sorted.

    Attributes:
        id: of its element.
        caption: what it shows.
        head: the columns' names.
        rows: cells; the first of a row names it.
        note: a line below it.
        numeric: which columns hold numbers.
        text: whether it holds text of a data set.
    """

    id: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""
    numeric: list[bool] = field(default_factory=list)
    text: bool = False


def metric_table(
    frame: pd.DataFrame, changes: pd.DataFrame | None, name: str, target: str | None, oracle: str | None
) -> Table:
    """A run's metrics beside the target's and the oracle's, with intervals."""
    columns = [("before", target), ("after", name), ("change", None), ("oracle", oracle)]
    columns = [(label, row) for label, row in columns if row is not None or (label == "change" and changes is not None)]
    rows = []
    for metric in metrics_of(frame):
        if _sort_value(frame.loc[name], metric) is None:
            continue
        cells = [Cell(metric)]
        for _, row in columns:
            cells.append(_change(changes, name, metric) if row is None else _cell(frame.loc[row], metric))
        count = frame.loc[name].get(f"{metric}.n")
        cells.append(Cell("–" if count is None or count != count else f"{count:.0f}", _float(count)))
        rows.append(cells)
    head = ["metric", *(label for label, _ in columns), "n"]
    note = (
        "Square brackets: 95 % interval over examples. The interval of a change is of paired differences: each question is its "
        "own control. n: examples (for model utility: parts). forget_quality is a p-value; above 0.05 the two are not told apart."
    )
    return Table("metrics", f"Every metric of {name}", head, rows, note, [False] + [True] * (len(head) - 1))


def runs_table(frame: pd.DataFrame, target: str | None, oracle: str | None) -> list[Table]:
    """The main metrics of all runs, and then all of them."""
    order = _in_order(frame)
    cost = _float(frame.loc[oracle, "seconds"]) if oracle else None
    main = headline_metrics(frame)
    rows = []
    for name in order:
        row = frame.loc[name]
        cells = [Cell(name), Cell(str(row["role"])), *(_cell(row, metric) for metric in main)]
        seconds = _float(row["seconds"])
        cells.append(Cell("–" if seconds is None else f"{seconds:.0f}", seconds))
        if cost:
            times = None if seconds is None else seconds / cost
            cells.append(Cell("–" if times is None else f"{times:.2f}", times))
        rows.append(cells)
    head = ["run", "role", *main, "seconds", *(["× oracle"] if cost else [])]
    numeric = [False, False] + [True] * (len(head) - 2)
    note = "Square brackets: 95 % interval over examples. forget_quality: p-value of a test against the oracle."
    first = Table("runs", "The runs", head, rows, note, numeric)
    rest = [metric for metric in metrics_of(frame) if metric not in main]
    if not rest:
        return [first]
    more = [[Cell(metric), *(_cell(frame.loc[name], metric) for name in order)] for metric in rest]
    return [first, Table("more", "All other metrics", ["metric", *order], more, "", [False] + [True] * len(order))]


def headline_metrics(frame: pd.DataFrame) -> list[str]:
    """The metrics that a first look needs: what is left of each set, forget quality, utility, capability."""
    have = [name for name in metrics_of(frame) if "/" not in name]
    directions = frame.attrs["directions"]
    forget = [name for name in have if directions[name] != "none" and name.split(".")[-1] in _SHOWN_FIRST]
    kept = [name for name in have if directions[name] == "none" and name.count(".") == 1]
    kept = [name for name in kept if name.split(".")[-1] == "rougeL_recall"] or [
        name for name in kept if name.split(".")[-1] == "probability"
    ]
    quality = [name for name in have if name.startswith("forget_quality.") and name.endswith(".arithmetic")]
    others = [name for name in ("model_utility.arithmetic", "capability.acc") if name in have]
    return [*forget, *quality, *kept, *others]


def _in_order(frame: pd.DataFrame) -> list[str]:
    rank = {"target": 0, "oracle": 1, "unlearned": 2}
    return sorted(map(str, frame.index), key=lambda name: (rank.get(str(frame.loc[name, "role"]), 3), name))


def _cell(row: Any, metric: str) -> Cell:
    value = _sort_value(row, metric)
    span = "" if value is None else interval(row, metric).strip()
    return Cell(number(row, metric).split(" ")[0], value, span)


def _change(changes: pd.DataFrame | None, name: str, metric: str) -> Cell:
    if changes is None or (name, metric) not in changes.index:
        return Cell("–")
    row: Any = changes.loc[(name, metric)]
    change, low, high = (_float(row[key]) for key in ("change", "change_low", "change_high"))
    if change is None:
        return Cell("–")
    span = "" if low is None or high is None else f"[{plain(low, '+')}, {plain(high, '+')}]"
    return Cell(plain(change, "+"), change, span)


def _sort_value(row: Any, metric: str) -> float | None:
    return _float(row.get(metric))


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None
