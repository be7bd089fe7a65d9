"""Check that two results hold the same examples, and read the scores of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_forget.errors import UserError


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
