"""One result beside another: the same rows, measured in the same way, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_forget.errors import UserError


def check_same_set(results: Mapping[str, Any], other: Mapping[str, Any], name: str, role: str = "oracle") -> None:
    """Make sure that two results hold the same set, asked for in the same way.

    Args:
        results: what ``run_suite`` gave for the model.
        other: what it gave for another model.
        name: the set.
        role: what the other model is, for the message.

    Raises:
        UserError: the other result lacks the set, or has other examples or another encoding.
    """
    own, found = results["sets"][name], other["sets"].get(name)
    encoding = other.get("settings", {}).get("encoding")
    if found is None or found.get("digest") != own["digest"] or encoding != results["settings"]["encoding"]:
        raise UserError(
            f"the {role} was not measured on the same {name} set in the same way (examples or encoding differ); "
            f"run this suite on the {role}, with the same limits, and give that result"
        )


def column(results: Mapping[str, Any], label: str) -> list[float]:
    """One score of all examples of a set; what JSON holds as null, or does not hold, is NaN."""
    scores = [scores.get(label) for scores in results["examples"].values()]
    return [math.nan if score is None else float(score) for score in scores]
