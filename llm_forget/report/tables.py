"""The tables of a page. A cell has a text to read and a number to sort by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_forget.evaluation.findings import number
from llm_forget.runs.comparison import is_number, metrics_of

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_FIRST = ("probability", "rougeL_recall")


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number to sort by (None: the text), its interval, shown smaller, and the class of its colour."""

    text: str
    sort: float | None = None
    small: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose columns can be sorted.

    Attributes:
        id: id of its element.
        caption: what it shows.
        head: names of the columns.
        rows: cells; the first cell of a row is its name.
        note: a line below the table.
        numeric: for each column, whether it holds numbers.
        text: whether the table holds text of a data set.
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
    """A run's metrics next to the target's and the oracle's, with intervals."""
    columns = [("before", target), ("after", name), ("change", None), ("oracle", oracle)]
    columns = [(label, row) for label, row in columns if row is not None or (label == "change" and changes is not None)]
    rows = []
    for metric in metrics_of(frame):
        if _float(frame.loc[name, metric]) is None:
            continue
        cells = [Cell(metric)]
        for _, row in columns:
            cells.append(_change(changes, name, metric) if row is None else _cell(frame.loc[row], metric))
        rows.append([*cells, _count(frame.loc[name].get(f"{metric}.n"))])
    head = ["metric", *(label for label, _ in columns), "n"]
    note = (
        "Square brackets: 95 % interval over examples. The interval of a change comes from paired differences: each question "
        "is its own control. n: examples (for model utility: parts). forget_quality is a p-value; above 0.05 the test finds no "
        "difference from the oracle."
    )
    return Table("metrics", f"All metrics of {name}", head, rows, note, [False] + [True] * (len(head) - 1))


def runs_table(frame: pd.DataFrame, oracle: str | None) -> list[Table]:
    """Two tables of all runs: the main metrics, and the other ones if there are any."""
    order = _in_order(frame)
    cost = _float(frame.loc[oracle, "seconds"]) if oracle else None
    main = headline_metrics(frame)
    rows = []
    for name in order:
        row = frame.loc[name]
        cells = [Cell(name), Cell(str(row["role"])), *(_cell(row, metric) for metric in main)]
        cells.append(_count(row["seconds"]))
        if cost:
            cells.append(_count(row["seconds"] / cost, 2))
        rows.append(cells)
    head = ["run", "role", *main, "seconds", *(["× oracle"] if cost else [])]
    numeric = [False, False] + [True] * (len(head) - 2)
    note = (
        "Square brackets: 95 % interval over examples. forget_quality: can the model be told apart from the oracle? paired is a "
        "p-value, below 0.05 it can; D is the distance of the truth ratios, 0 for none. attacks.auc.loss should be the oracle's."
    )
    first = Table("runs", "The runs", head, rows, note, numeric)
    rest = [metric for metric in metrics_of(frame) if metric not in main]
    if not rest:
        return [first]
    more = [[Cell(metric), *(_cell(frame.loc[name], metric) for name in order)] for metric in rest]
    return [first, Table("more", "All other metrics", ["metric", *order], more, "", [False] + [True] * len(order))]


def headline_metrics(frame: pd.DataFrame) -> list[str]:
    """The metrics for a first look, which answer whether a model behaves as if it had never learned the forget rows.

    Told apart from the oracle (paired test, D), the loss attack, extraction strength, what is kept, and capability. Probability
    and ROUGE of the forget rows are left to the second table: wording can be suppressed without forgetting. They come first only
    if the suite measured none of these.
    """
    have = [name for name in metrics_of(frame) if "/" not in name]
    directions = frame.attrs["directions"]
    tests = [name for name in have if name.startswith("forget_quality.") and ".arithmetic" in name]
    apart = [name for name in tests if name.endswith((".paired", ".D"))] or tests
    attack = [name for name in have if name == "attacks.auc.loss"]
    forget = [name for name in have if directions[name] != "none" and name.count(".") == 1]
    extracted = [name for name in forget if name.endswith(".extraction_strength")]
    first = [*sorted(apart, key=lambda name: name.endswith(".D")), *attack, *extracted]
    if not first:
        first = [name for name in forget if name.split(".")[-1] in _SHOWN_FIRST]
    kept = [name for name in have if directions[name] == "none" and name.count(".") == 1]
    kept = [name for name in kept if name.split(".")[-1] == "rougeL_recall"] or [
        name for name in kept if name.split(".")[-1] == "probability"
    ]
    others = [name for name in ("capability.acc", "model_utility.arithmetic") if name in have]
    return [*first, *sorted(kept, key=lambda name: not name.startswith("neighbour")), *others[:1]]


def _in_order(frame: pd.DataFrame) -> list[str]:
    rank = {"target": 0, "oracle": 1, "unlearned": 2}
    return sorted(map(str, frame.index), key=lambda name: (rank.get(str(frame.loc[name, "role"]), 3), name))


def _cell(row: Any, metric: str) -> Cell:
    value = _float(row.get(metric))
    if value is None:
        return Cell("–")
    if metric.startswith("forget_quality") and not metric.endswith(".D"):
        return Cell("<0.001" if value < 0.001 else f"{value:.3f}", value)
    return Cell(number(value), value, _span(row.get(f"{metric}.low"), row.get(f"{metric}.high")))


def _change(changes: pd.DataFrame | None, name: str, metric: str) -> Cell:
    if changes is None or (name, metric) not in changes.index:
        return Cell("–")
    row: Any = changes.loc[(name, metric)]
    change = _float(row["change"])
    return (
        Cell("–")
        if change is None
        else Cell(number(change, "+"), change, _span(row["change_low"], row["change_high"], "+"))
    )


def _span(low: Any, high: Any, sign: str = "") -> str:
    """``[low, high]``, or nothing if there is no interval."""
    ends = [_float(low), _float(high)]
    return "" if None in ends else f"[{', '.join(number(end, sign) for end in ends if end is not None)}]"


def _count(value: Any, digits: int = 0) -> Cell:
    found = _float(value)
    return Cell("–") if found is None else Cell(f"{found:.{digits}f}", found)


def _float(value: Any) -> float | None:
    return float(value) if is_number(value) else None
