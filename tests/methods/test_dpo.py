"""Test DPO against values computed by hand, its scale, and the limit in which it equals NPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.dpo import DPO, dpo_loss
from llm_forget.methods.npo import npo_loss
from llm_forget.scores import AnswerScores

logps, betas = st.floats(-60, 0, width=32), st.floats(0.01, 2)


@pytest.mark.parametrize(
    ("ratio", "other_ratio", "scale", "value"),
    [
        (0.0, 0.0, 1.0, math.log(2)),  # π = π₀
        (0.0, 0.0, 20.0, 20 * math.log(2)),
        (-math.log(3), 0.0, 1.0, math.log(4 / 3)),  # β = 1: σ(ln 3) = ¾
        (math.log(3), 0.0, 1.0, math.log(4)),
        (math.log(3), 2 * math.log(3), 1.0, math.log(4 / 3)),  # only the difference matters: 2 ln 3 − ln 3
    ],
)
def test_computed_by_hand(ratio: float, other_ratio: float, scale: float, value: float) -> None:
    start, other = torch.tensor([-5.0]), torch.tensor([-9.0])
    loss = dpo_loss(start + ratio, start, other + other_ratio, other, beta=1.0, scale=scale)
    assert loss.tolist() == pytest.approx([value], rel=1e-5)


@given(logps, logps, logps, betas)
@settings(deadline=None)
def test_with_an_unchanged_alternative_and_npos_scale_it_is_npo(
    policy: float, reference: float, other: float, beta: float
) -> None:
    mine, known, still = (torch.tensor([value]) for value in (policy, reference, other))
    assert dpo_loss(mine, known, still, still, beta=beta, scale=2 / beta).item() == pytest.approx(
        npo_loss(mine, known, beta=beta).item(), rel=1e-4, abs=1e-6
    )


def scores() -> AnswerScores:
    mask = torch.ones(1, 2, dtype=torch.bool)
    other = AnswerScores(torch.full((1, 2), -3.0), mask, mask.long(), reference_logps=torch.tensor([-6.0]))
    return AnswerScores(
        torch.full((1, 2), -1.0), mask, mask.long(), reference_logps=torch.tensor([-2.0]), alternative=other
    )


def test_the_default_scale_is_that_of_npo() -> None:
    """At π = π₀ with β = 0.1: (2/β) ln 2 = 20 ln 2, and ln 2 with scale 1."""
    assert DPO().forget_loss(scores()).tolist() == pytest.approx([20 * math.log(2)])
    assert DPO(scale=1.0).forget_loss(scores()).tolist() == pytest.approx([math.log(2)])


def test_missing_scores_and_bad_values_are_refused() -> None:
    lonely = AnswerScores(**{**vars(scores()), "alternative": None})
    with pytest.raises(ValueError, match="dpo needs an alternative answer"):
        DPO().forget_loss(lonely)
    with pytest.raises(ValueError, match="beta is 0"):
        DPO(beta=0)
    with pytest.raises(ValueError, match=r"scale is 0.*null"):
        DPO(scale=0)
