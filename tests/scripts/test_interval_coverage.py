"""Test the simulation of coverage on a few draws: its samples, its true values, and its sense of right and wrong."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
from places import ROOT

from llm_forget.evaluation.equivalence import Answer, equivalence

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "interval_coverage.py"))
INTERVALS = {name: (true, drawn) for name, true, drawn in SCRIPT["intervals"]()}
MODELS = dict(SCRIPT["models"]())


@pytest.mark.parametrize("name", INTERVALS)
def test_each_interval_surrounds_the_true_value(name: str) -> None:
    true, drawn = INTERVALS[name]
    ends = np.array([drawn(np.random.default_rng(seed), 100) for seed in range(3)])
    assert (ends[:, 0] < ends[:, 1]).all()
    assert ends[:, 0].min() <= true <= ends[:, 1].max()


def test_coverage_is_the_share_of_intervals_with_the_true_value() -> None:
    coverage = SCRIPT["coverage"]
    assert coverage(lambda draw, n: (0.0, 1.0), 0.5, 10, 4, 0) == 1
    assert coverage(lambda draw, n: (0.0, 0.4), 0.5, 10, 4, 0) == 0
    assert coverage(lambda draw, n: (draw.random(), 2.0), 0.5, 10, 400, 0) == pytest.approx(0.5, abs=0.1)
    assert coverage(INTERVALS["mean, normal"][1], 0.5, 20, 300, 0) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_model_has_the_share_left_that_it_should_have(name: str, share: float) -> None:
    ratios = [equivalence(MODELS[name](np.random.default_rng(seed), 400, share)).ratio for seed in range(20)]
    assert np.mean(ratios) == pytest.approx(share, abs=0.05)


def test_half_the_knowledge_is_not_called_none() -> None:
    share_of = SCRIPT["share_of"]
    for model in MODELS.values():
        assert share_of(Answer.AS_IF_NEVER_SEEN, model, 0.5, 32, 60, 0) == 0
    assert share_of(Answer.AS_IF_NEVER_SEEN, MODELS["probability, part of each answer"], 0.0, 32, 60, 0) > 0.9
