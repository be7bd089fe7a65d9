"""Numbers of whole sets that follow from the scores of their examples: forget quality and model utility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from llm_forget.errors import DataError
from llm_forget.evaluation.aggregates.forget_quality import forget_quality
from llm_forget.evaluation.aggregates.model_utility import model_utility
from llm_forget.evaluation.compare import check_same_set, column
from llm_forget.evaluation.sets import Measured, SetConfig
from llm_forget.evaluation.tokens import Floats

_DEFINITIONS = ("arithmetic", "geometric")


def measure_forget_quality(
    asked: Mapping[str, Any], measured: Mapping[str, Measured], oracle: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Compare the truth ratios of each forget set with the oracle's.

    Args:
        asked: ``settings``, and ``sets`` with their digests, of this evaluation.
        measured: the sets.
        oracle: what the suite gave for the oracle, None without one.

    Returns:
        Forget set → definition → the test's result; None without an oracle or a forget set with truth ratios.
    """
    found: dict[str, Any] = {}
    for name, one in {} if oracle is None else measured.items():
        labels = [f"truth_ratio_{definition}" for definition in _DEFINITIONS]
        labels = [label for label in labels if label in one.by_metric]
        if oracle is None or not one.scores.forget or not labels:
            continue
        check_same_set(asked, oracle, name)
        found[name] = {
            label.removeprefix("truth_ratio_"): asdict(
                forget_quality(one.by_metric[label], column(oracle["sets"][name], label))
            )
            for label in labels
        }
    return found or None


def measure_utility(
    sets: Mapping[str, SetConfig], measured: Mapping[str, Measured], seed: int
) -> dict[str, Any] | None:
    """Combine the sets that name a ``utility`` into the model utility.

    Args:
        sets: what was asked for of each set.
        measured: the sets.
        seed: of the bootstrap.

    Returns:
        Definition of the truth ratio → model utility; under ``without_truth_ratio`` if no set has one; None if no set
        names a ``utility``.

    Raises:
        DataError: a set's data do not allow the probability that it names.
    """
    chosen = {name: config.utility for name, config in sets.items() if config.utility is not None}
    if not chosen:
        return None
    for name, probability in chosen.items():
        if probability not in measured[name].by_metric:
            raise DataError(f"{name} enters the model utility by its {probability}, which its data do not allow")
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
        found[definition] = {**asdict(model_utility(components, seed=seed)), "seed": seed}
    return found


def _components(by_metric: Mapping[str, Floats], labels: list[str]) -> dict[str, Floats]:
    """The scores that enter the model utility, each in [0, 1]: of the truth ratio max(0, 1 − R)."""
    return {
        label: np.maximum(0.0, 1.0 - by_metric[label]) if label.startswith("truth") else by_metric[label]
        for label in labels
        if label in by_metric
    }
