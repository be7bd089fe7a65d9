"""Pair the scores of several results by example. Arrays and dictionaries only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.evaluation.intervals import mean_interval
from llm_forget.evaluation.metrics.truth_ratio import forget_truth_ratio, kept_truth_ratio

if TYPE_CHECKING:
    from llm_forget.evaluation.tokens import Floats

_SAME_MEAN = 1e-6  # largest rounding difference between a metric's value and the mean of its scores


def paired_scores(label: str, *sets: Mapping[str, Any]) -> list[Floats] | None:
    """The averaged scores of the examples that all sets share, in one order.

    Args:
        label: the metric.
        sets: the same set's entry in several results, with ``metrics`` and ``examples``.

    Returns:
        An (E,) array for each entry; None if the metric is not the mean of its scores, if the results hold different
        examples, or if they share fewer than two. Examples that one of them could not score are left out.
    """
    examples = [one.get("examples") or {} for one in sets]
    if len({frozenset(one) for one in examples}) != 1:
        return None
    columns = []
    for one, found in zip(sets, examples, strict=True):
        value = one["metrics"].get(label, {}).get("value")
        scores = [found[name].get(label) for name in examples[0]]
        raw = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
        averaged = None if value is None else _averaged(label, raw, float(value))
        if averaged is None:
            return None
        columns.append(averaged)
    good = ~np.isnan(columns).any(axis=0)
    return None if good.sum() < 2 else [one[good] for one in columns]


def _averaged(label: str, scores: Floats, value: float) -> Floats | None:
    """The values whose mean is the metric's value: the scores, or what the truth ratio makes of them."""
    forms: list[Callable[[Floats], Floats]] = [lambda raw: raw]
    if label.startswith("truth_ratio"):
        forms += [forget_truth_ratio, kept_truth_ratio]
    for form in forms:
        found: Floats = form(scores)
        known = found[~np.isnan(found)]
        if len(known) and abs(known.mean() - value) < _SAME_MEAN:
            return found
    return None


def paired_change(after: Mapping[str, Any], before: Mapping[str, Any], label: str) -> tuple[float, float] | None:
    """95 % interval of a metric's change, paired by example.

    Each example is its own control, so this interval is usually narrower than the intervals of the two results.

    Args:
        after: a set's entry in the later result, with ``metrics`` and ``examples``.
        before: the same set's entry in the earlier result.
        label: the metric.

    Returns:
        Lower and upper end, or None if the scores cannot be paired (``paired_scores``).
    """
    pairs = paired_scores(label, after, before)
    return None if pairs is None else mean_interval(pairs[0] - pairs[1])
