"""The verdict in plain words: what was forgotten, what the rest lost, and by which rule that is said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_forget.runs.comparison import metrics_of

if TYPE_CHECKING:
    import pandas as pd

_LABELS = {"probability": "probability of the right answer", "rougeL_recall": "ROUGE-L of what the model says"}
MOSTLY, PARTLY = 0.8, 0.2  # shares of the way from the target to the oracle
LOSS = 0.05  # a relative loss below this is not called damage
RULE = (
    f"Forgotten: each forget metric's interval reaches the oracle's. Mostly: at least {MOSTLY:.0%} of the way from the target "
    f"to the oracle (without one: of the probability, to nothing); partly: at least {PARTLY:.0%}. Harmed: a loss of more than "
    f"{LOSS:.0%} whose 95 % interval excludes no change."
)
_LEVELS = ("hardly forgotten", "partly forgotten", "mostly forgotten", "forgotten")


@dataclass(frozen=True)
class Words:
    """A verdict.

    Attributes:
        headline: one sentence.
        forgot: what was forgotten, a sentence a metric.
        kept: what the rest lost or kept, a sentence a metric.
        level: 0 (hardly forgotten) to 3 (forgotten), None when nothing was measured against a target.
        harmed: the sets and tests that lost something.
    """

    headline: str
    forgot: list[str]
    kept: list[str]
    level: int | None
    harmed: list[str]


def judge(
    frame: pd.DataFrame, changes: pd.DataFrame | None, name: str, target: str | None, oracle: str | None
) -> Words:
    """Put a run's numbers into words.

    Args:
        frame: from ``load_runs``, with the run's row and the others'.
        changes: ``compare(frame, target)``, or None without a target.
        name: the run.
        target: the row before unlearning, measured on the same suite.
        oracle: the row that never saw the forget set.
    """
    row = frame.loc[name]
    before = None if target is None else frame.loc[target]
    goal = None if oracle is None else frame.loc[oracle]
    levels: list[int] = []
    forgot: list[str] = []
    for metric in _forget_metrics(frame):
        if not _known(row.get(metric)):
            continue
        forgot.append(_forget_sentence(metric, row, before, goal))
        # without an oracle nobody knows how many words any answer shares; a probability can go to nothing
        judged = _known(goal.get(metric)) if goal is not None else metric.endswith(".probability")
        if before is not None and judged and _known(before.get(metric)):
            levels.append(_level(metric, row, before, goal))
    if not forgot:
        forgot = list(_from_training(row))
    kept, harmed = [], []
    for metric in _kept_metrics(frame) if before is not None else []:
        if _known(row.get(metric)) and _known(before.get(metric) if before is not None else None):
            sentence, lost = _kept_sentence(metric, row, before, changes, name)
            kept.append(sentence)
            if lost:
                harmed.append(metric.split(".", 1)[0])
    harmed = list(dict.fromkeys(harmed))
    level = min(levels, default=None)
    return Words(_headline(level, harmed, bool(kept)), forgot, kept, level, harmed)


def _headline(level: int | None, harmed: list[str], measured: bool) -> str:
    if level is None:
        return "Not judged: there is no target measured on the same suite to compare with."
    start = _LEVELS[level].capitalize()
    if not measured:
        return f"{start}; what the rest lost was not measured."
    if not harmed:
        return f"{start}, and nothing that was measured of the rest was harmed."
    return f"{start}; harmed on the way: {', '.join(harmed)}."


def _forget_metrics(frame: pd.DataFrame) -> list[str]:
    directions = frame.attrs.get("directions", {})
    return [
        name for name in metrics_of(frame) if directions[name] in ("low", "high") and name.split(".")[-1] in _LABELS
    ]


def _kept_metrics(frame: pd.DataFrame) -> list[str]:
    directions = frame.attrs.get("directions", {})
    never_learned = frame.attrs.get("never_learned", ())  # it can only be unlikely: that is no harm
    sets = [
        name
        for name in metrics_of(frame)
        if name.split(".")[-1] in _LABELS
        and directions[name] == "none"
        and name.count(".") == 1
        and "/" not in name
        and name.split(".")[0] not in never_learned
    ]
    return [*sets, *(name for name in ("capability.acc", "perplexity") if name in frame)]


def _level(metric: str, row: Any, before: Any, goal: Any) -> int:
    """0 to 3, by the share of the way that was gone; 3 only where the oracle's interval is reached."""
    floor = float(goal[metric]) if goal is not None and _known(goal.get(metric)) else None
    gap = float(before[metric]) - (floor or 0.0)
    share = (float(before[metric]) - float(row[metric])) / gap if gap else 1.0
    if floor is not None:
        end, goal_end = row.get(f"{metric}.low"), goal.get(f"{metric}.high")
        reached = float(row[metric]) <= floor or (_known(end) and _known(goal_end) and end <= goal_end)
        if reached:
            return 3
    return 2 if share >= MOSTLY else 1 if share >= PARTLY else 0


def _forget_sentence(metric: str, row: Any, before: Any, goal: Any) -> str:
    part, label = metric.split(".")[0], _LABELS[metric.split(".")[-1]]
    told = f"{part}: the {label} is {number(row, metric)}"
    if before is not None and _known(before.get(metric)):
        told += f"; it was {plain(before[metric])} before"
    if goal is not None and _known(goal.get(metric)):
        told += f", and is {number(goal, metric)} for a model that never saw it"
        if before is not None and _known(before.get(metric)) and before[metric] != goal[metric]:
            share = (before[metric] - row[metric]) / (before[metric] - goal[metric])
            told += f" ({min(1.0, max(0.0, share)):.0%} of the way)"
    return told + "."


def _kept_sentence(metric: str, row: Any, before: Any, changes: pd.DataFrame | None, name: str) -> tuple[str, bool]:
    worse = -1 if metric == "perplexity" else 1
    part, _, last = metric.partition(".")
    label = {"capability": "accuracy on general knowledge", "perplexity": "perplexity of ordinary text"}.get(part)
    label = label or f"{part}: the {_LABELS[last]}"
    change = float(row[metric] - before[metric])
    loss = -worse * change / float(before[metric]) if before[metric] else 0.0
    low: Any = None
    high: Any = None
    if changes is not None and (name, metric) in changes.index:
        low, high = changes.loc[(name, metric), ["change_low", "change_high"]]
    if _known(low) and _known(high):
        sure = high < 0 if worse > 0 else low > 0
        span = f", change {plain(change, '+')} [{low:+.3f}, {high:+.3f}]"
    else:
        ends = (f"{metric}.high", f"{metric}.low") if worse > 0 else (f"{metric}.low", f"{metric}.high")
        own, other = row.get(ends[0]), before.get(ends[1])
        sure = _known(own) and _known(other) and (own < other if worse > 0 else own > other)
        span = f", change {plain(change, '+')}"
    lost = loss > LOSS and sure
    said = "harmed" if lost else "a loss that this many examples cannot make sure of" if loss > LOSS else "kept"
    return f"{label} is {number(row, metric)}; it was {plain(before[metric])}{span}: {said}.", lost


def _from_training(row: Any) -> Iterator[str]:
    """What the run itself measured, where no evaluation was made."""
    for part in ("forget", "retain"):
        after, before = row.get(f"after.{part}"), row.get(f"before.{part}")
        if _known(after) and _known(before):
            yield f"{part}: the run's own sample has an answer probability of {after:.3f}; it was {before:.3f} before."


def number(row: Any, metric: str) -> str:
    """A number with its interval, as a table or a sentence shows it."""
    value = row.get(metric)
    if not _known(value):
        return "–"
    if metric.startswith("forget_quality"):
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return plain(value) + interval(row, metric)


def interval(row: Any, metric: str) -> str:
    """`` [low, high]``, or nothing where there is no interval."""
    low, high = row.get(f"{metric}.low"), row.get(f"{metric}.high")
    return f" [{plain(low)}, {plain(high)}]" if _known(low) and _known(high) else ""


def plain(value: float, sign: str = "") -> str:
    """Three digits after the point, one for what is 10 or more."""
    return f"{value:{sign}.{1 if abs(value) >= 10 else 3}f}"


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
