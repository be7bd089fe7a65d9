"""Controls: results of target, oracle and sham on the same suite, stored with a model's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_forget.errors import UserError
from llm_forget.evaluation.compare import check_same_set

# target: the model before unlearning. oracle: a model that never saw the forget set. sham: the same recipe run on a disjoint
# forget set.
ROLES = ("target", "oracle", "sham")
# Sections that hold no measurement of the control.
_LEFT_OUT = ("schema", "suite", "settings", "controls", "verdict", "warnings", "seconds", "scores", "checksum")


def check_controls(results: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Check that controls were measured on the same sets in the same way.

    Args:
        results: the model's result.
        controls: role → the control's result.

    Returns:
        Warnings about sets that a control lacks and about generation settings that differ.

    Raises:
        UserError: a role is unknown, or a set has other examples or another encoding.
    """
    warnings = []
    for role, control in controls.items():
        if role not in ROLES:
            raise UserError(f"{role} is not a control; give one of {', '.join(ROLES)}")
        for name, own in results["sets"].items():
            if name in control["sets"] or own["forget"]:
                check_same_set(results, control, name, role)
            else:
                warnings.append(f"the {role} was not measured on the {name} set")
        if _greedy(control.get("settings", {})) != _greedy(results["settings"]):
            warnings.append(
                f"the {role} was measured with other generation settings, so its text metrics are not comparable"
            )
    return warnings


def _greedy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The generation settings that affect greedy answers; sampling does not."""
    generation = settings.get("generation") or {}
    return {key: value for key, value in generation.items() if key not in ("sampling", "batch_size")}


def side_by_side(controls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The aggregates of the controls, without the scores of single examples.

    Args:
        controls: role → the control's result.
    """
    found = {}
    for role, control in controls.items():
        kept = {key: value for key, value in control.items() if key not in _LEFT_OUT and value is not None}
        sets = {
            name: {key: value for key, value in one.items() if key != "examples"} for name, one in kept["sets"].items()
        }
        found[role] = {**kept, "sets": sets}
        if "capability" in kept:
            found[role]["capability"] = {key: value for key, value in kept["capability"].items() if key != "correct"}
    return found
