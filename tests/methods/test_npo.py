"""Test NPO against values computed by hand, and the limit in which it is gradient ascent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.npo import NPO, npo_loss

logps = st.floats(-60, 0, width=32)
betas = st.floats(0.01, 2)


def gradient(policy: float, reference: float, beta: float) -> float:
    value = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    npo_loss(value, torch.tensor([reference], dtype=torch.float64), beta=beta).sum().backward()
    return float(value.grad)


@pytest.mark.parametrize(
    ("policy", "reference", "beta", "value"),
    [
        (-4.0, -4.0, 0.1, 20 * math.log(2)),  # r = 0: (2/β) ln 2 = 13.863
        (-9.0, -9.0, 2.0, math.log(2)),
        # r = −ln 3, β = 1: σ(ln 3) = 3/4, so −2 ln(3/4) = 2 ln(4/3)
        (-5.0 - math.log(3), -5.0, 1.0, 2 * math.log(4 / 3)),
        # r = +ln 3, β = 1: σ(−ln 3) = 1/4, so 2 ln 4
        (-5.0 + math.log(3), -5.0, 1.0, 2 * math.log(4)),
    ],
)
def test_computed_by_hand(policy: float, reference: float, beta: float, value: float) -> None:
    loss = npo_loss(torch.tensor([policy]), torch.tensor([reference]), beta=beta)
    assert loss.tolist() == pytest.approx([value], rel=1e-5)


@given(logps, betas)
@settings(deadline=None)
def test_at_the_reference_it_is_gradient_ascent_on_the_sum(value: float, beta: float) -> None:
    """d/dr of −(2/β) log σ(−βr) = 2 σ(βr), which is 2 · ½ = 1 at r = 0 for every β, as in gradient ascent."""
    assert npo_loss(torch.tensor([value]), torch.tensor([value]), beta=beta).item() == pytest.approx(
        2 / beta * math.log(2), rel=1e-4
    )
    assert gradient(value, value, beta) == pytest.approx(1.0)


@given(logps, logps, betas)
@settings(deadline=None)
def test_gradient_is_twice_the_sigmoid(policy: float, reference: float, beta: float) -> None:
    """2 σ(βr) is between 0 (forgotten) and 2 (more likely than before): NPO's adaptive weight on the ascent gradient."""
    ratio = policy - reference
    assert gradient(policy, reference, beta) == pytest.approx(2 / (1 + math.exp(-beta * ratio)), rel=1e-6)


@given(logps, logps)
@settings(deadline=None)
def test_beta_to_zero_is_gradient_ascent_everywhere(policy: float, reference: float) -> None:
    """|2 σ(βr) − 1| ≤ β|r|/2 → 0."""
    for beta in (1e-2, 1e-4, 1e-6):
        assert abs(gradient(policy, reference, beta) - 1) <= beta * abs(policy - reference) / 2 + 1e-9


@given(logps, logps, betas)
@settings(deadline=None)
def test_positive_and_increasing_in_the_answer_log_prob(policy: float, reference: float, beta: float) -> None:
    there, lower = (
        npo_loss(torch.tensor([p]), torch.tensor([reference]), beta=beta).item() for p in (policy, policy - 1)
    )
    assert 0 <= lower <= there


def test_extreme_log_probs_do_not_overflow() -> None:
    assert npo_loss(torch.tensor([-1e6]), torch.tensor([0.0]), beta=2.0).tolist() == [0.0]
    assert npo_loss(torch.tensor([0.0]), torch.tensor([-1e6]), beta=2.0).tolist() == pytest.approx([2e6])
    assert gradient(-1e6, 0.0, 2.0) == 0.0


def test_default_beta_is_that_of_the_paper_and_must_be_positive() -> None:
    assert NPO().beta == 0.1
    with pytest.raises(ValueError, match="beta is 0"):
        NPO(beta=0)
