"""Numbers of whole sets, computed from the scores of their examples: forget quality, model utility, aggregates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from llm_forget.errors import DataError
from llm_forget.evaluation.aggregates import Aggregate, ScoredSet, SuiteScores
from llm_forget.evaluation.aggregates.forget_quality import forget_quality
from llm_forget.evaluation.aggregates.model_utility import model_utility
from llm_forget.evaluation.compare import check_same_set, column, same_set
from llm_forget.evaluation.scores_file import TEXT
from llm_forget.evaluation.sets import Measured, SetConfig
from llm_forget.evaluation.tokens import Floats, as_floats
from llm_forget.utils.plugins import make_named, names_in

_DEFINITIONS = ("arithmetic", "geometric")
_AGGREGATES = ("llm_forget.evaluation.aggregates", "value")


def measure_forget_quality(
    asked: Mapping[str, Any],
    measured: Mapping[str, Measured],
    oracle: Mapping[str, Any] | None,
    target: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Compare the truth ratios of each forget set with the oracle's.

    Args:
        asked: this evaluation's ``settings``, and its ``sets`` with their digests.
        measured: set → its measurements.
        oracle: this suite's result for the oracle, or None.
        target: this suite's result for the target, or None; its own test is stored with the model's.

    Returns:
        Forget set → definition → the test's result; None without an oracle or without truth ratios on a forget set.
    """
    found: dict[str, Any] = {}
    for name, one in {} if oracle is None else measured.items():
        labels = [f"truth_ratio_{definition}" for definition in _DEFINITIONS]
        labels = [label for label in labels if label in one.by_metric]
        if oracle is None or not one.scores.forget or not labels:
            continue
        check_same_set(asked, oracle, name)
        before = target if target is not None and name in target["sets"] and same_set(asked, target, name) else None
        found[name] = {}
        for label in labels:
            expected = column(oracle["sets"][name], label)
            test = asdict(forget_quality(one.by_metric[label], expected))
            of_target = (
                None if before is None else asdict(forget_quality(column(before["sets"][name], label), expected))
            )
            found[name][label.removeprefix("truth_ratio_")] = {**test, "target": of_target}
    return found or None


def measure_utility(sets: Mapping[str, SetConfig], measured: Mapping[str, Measured]) -> dict[str, Any] | None:
    """Combine the sets with a ``utility`` setting into the model utility.

    Args:
        sets: set → its settings.
        measured: set → its measurements.

    Returns:
        Definition of the truth ratio → model utility, with the key ``without_truth_ratio`` if no set has truth ratios;
        None if no set has a ``utility`` setting.

    Raises:
        DataError: a set's data do not allow the probability in its ``utility``.
    """
    chosen = {name: config.utility for name, config in sets.items() if config.utility is not None}
    if not chosen:
        return None
    for name, probability in chosen.items():
        if probability not in measured[name].by_metric:
            raise DataError(
                f"the {name} set has utility: {probability}, but its data do not allow this metric; set utility: null"
            )
    available = [
        definition
        for definition in _DEFINITIONS
        if any(f"truth_ratio_{definition}" in measured[name].by_metric for name in chosen)
    ]
    found = {}
    for definition in available or ["without_truth_ratio"]:
        components = {
            name: _components(measured[name].by_metric, [probability, "rougeL_recall", f"truth_ratio_{definition}"])
            for name, probability in chosen.items()
        }
        found[definition] = {**asdict(model_utility(components))}
    return found


def _components(by_metric: Mapping[str, Floats], labels: list[str]) -> dict[str, Floats]:
    """The components of the model utility, each in [0, 1]; a truth ratio R contributes max(0, 1 − R)."""
    return {
        label: np.maximum(0.0, 1.0 - by_metric[label]) if label.startswith("truth") else by_metric[label]
        for label in labels
        if label in by_metric
    }


def make_aggregates(named: Sequence[str | Mapping[str, Any]] | None) -> list[Aggregate]:
    """Create the aggregates that a suite asks for: names, or mappings with a name and settings; None for all.

    Raises:
        RecipeError: an aggregate or setting is unknown, or two aggregates have the same label.
    """
    return make_named(names_in(*_AGGREGATES) if named is None else named, *_AGGREGATES)


def measure_aggregates(
    aggregates: Sequence[Aggregate], known: SuiteScores, *, named: bool
) -> tuple[dict[str, Any], list[str]]:
    """Compute each aggregate whose inputs are available.

    Args:
        aggregates: the requested aggregates.
        known: the scores of the sets for the model and the controls.
        named: whether the suite named the aggregates; if so, one that cannot be computed gives a warning.

    Returns:
        Label → the number with its interval and bounds; and warnings.
    """
    found, warnings = {}, []
    for one in aggregates:
        missing = [need for need in one.needs if not known.has(need)]
        if not missing:
            found[one.label] = {**asdict(one.value(known)), "bounds": list(one.bounds)}
        elif named:
            warnings.append(f"the aggregate {one.label} was not computed: it needs {', '.join(missing)}")
    return found, warnings


def suite_scores(
    asked: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Floats]],
    controls: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> SuiteScores:
    """Collect the inputs of the aggregates.

    Args:
        asked: this evaluation's ``sets``, with ``digest`` and ``forget``.
        scores: set → label → (E,) scores of the model.
        controls: role → this suite's result for the control.
        seed: seed of the bootstrap.
    """
    forget = {name: bool(one["forget"]) for name, one in asked["sets"].items()}
    own = {name: ScoredSet(forget[name], found) for name, found in scores.items()}
    others = {
        role: {
            name: ScoredSet(forget[name], _columns(one))
            for name, one in control["sets"].items()
            if name in forget and one["digest"] == asked["sets"][name]["digest"]
        }
        for role, control in controls.items()
    }
    return SuiteScores(own, others, seed)


def _columns(stored: Mapping[str, Any]) -> dict[str, Floats]:
    """Label → (E,) scores of a set in a result."""
    labels = dict.fromkeys(label for scores in stored["examples"].values() for label in scores if label != TEXT)
    return {label: as_floats(column(stored, label)) for label in labels}
