"""Compare two results: check that both hold the same examples, and pair their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregate import aggregate

_SAME_MEAN = 1e-6  # largest rounding difference between a metric's value and the mean of its scores


def same_set(results: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    """Whether two results hold the same set, with the same examples and the same encoding.

    Args:
        results: a result that has the set.
        other: another result.
        name: the set.
    """
    own, found = results["sets"][name], other["sets"].get(name)
    return (
        found is not None
        and found.get("digest") == own.get("digest")
        and other.get("settings", {}).get("encoding") == results.get("settings", {}).get("encoding")
    )


def check_same_set(results: Mapping[str, Any], other: Mapping[str, Any], name: str, role: str = "oracle") -> None:
    """Check that two results hold the same set (see ``same_set``).

    Args:
        results: the model's result.
        other: another model's result.
        name: the set.
        role: the role of the other model, for the message.

    Raises:
        UserError: the other result lacks the set, or has other examples or another encoding.
    """
    if not same_set(results, other, name):
        raise UserError(
            f"the {role} was not measured on the same {name} set in the same way (examples or encoding differ); "
            f"run this suite on the {role}, with the same limits, and give that result"
        )


def column(results: Mapping[str, Any], label: str) -> list[float]:
    """All scores with one label in a set; NaN for an example that was not scored."""
    scores = [scores.get(label) for scores in results["examples"].values()]
    return [math.nan if score is None else float(score) for score in scores]


def paired_change(
    after: Mapping[str, Any], before: Mapping[str, Any], label: str, *, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a metric's change, paired by example.

    Each example is its own control, so this interval is usually narrower than the intervals of the two results.

    Args:
        after: a set's entry in the later result, with ``metrics`` and ``examples``.
        before: the same set's entry in the earlier result.
        label: the metric.
        seed: seed of the bootstrap.

    Returns:
        Lower and upper end, or None if the metric is not the mean of its scores, if a score is missing, or if the results
        share fewer than two examples.
    """
    ends = [one["metrics"].get(label, {}).get("value") for one in (after, before)]
    own, other = after.get("examples") or {}, before.get("examples") or {}
    pairs = [(own[one].get(label), other[one].get(label)) for one in own if one in other]
    if None in ends or len(pairs) < 2 or any(value is None for pair in pairs for value in pair):
        return None
    difference = np.array([late - early for late, early in pairs], dtype=np.float64)
    if not abs(difference.mean() - (ends[0] - ends[1])) < _SAME_MEAN:
        return None
    found = aggregate(difference, seed=seed)
    return found.low, found.high
