"""Test SimNPO against values computed by hand, and the limits in which it is NPO or gradient ascent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.npo import npo_loss
from llm_forget.methods.simnpo import SimNPO, simnpo_loss

means, betas = st.floats(-20, 0, width=32), st.floats(0.01, 5)


@pytest.mark.parametrize(
    ("mean", "beta", "margin", "value"),
    [
        (0.0, 4.5, 0.0, 2 / 4.5 * math.log(2)),  # σ(0) = ½
        (-math.log(3), 1.0, 0.0, 2 * math.log(4 / 3)),  # σ(ln 3) = ¾
        (-math.log(3), 1.0, math.log(3), 2 * math.log(2)),  # the margin compensates: σ(0) = ½
    ],
)
def test_computed_by_hand(mean: float, beta: float, margin: float, value: float) -> None:
    loss = simnpo_loss(torch.tensor([mean]), beta=beta, margin=margin)
    assert loss.tolist() == pytest.approx([value], rel=1e-5)


@given(means, betas)
@settings(deadline=None)
def test_without_margin_it_is_npo_against_a_certain_reference(mean: float, beta: float) -> None:
    """−(2/β) log σ(−β r) with log π₀ = 0, so r = log π."""
    value = torch.tensor([mean])
    assert simnpo_loss(value, beta=beta, margin=0.0).item() == pytest.approx(
        npo_loss(value, torch.zeros(1), beta=beta).item(), rel=1e-5
    )


@given(means)
@settings(deadline=None)
def test_beta_to_zero_is_gradient_ascent(mean: float) -> None:
    """d/dm = 2 σ(β m) → 1."""
    value = torch.tensor([mean], dtype=torch.float64, requires_grad=True)
    simnpo_loss(value, beta=1e-6, margin=0.0).sum().backward()
    assert float(value.grad) == pytest.approx(1.0, abs=1e-4)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="beta is 0"):
        SimNPO(beta=0)
    with pytest.raises(ValueError, match="margin is -1"):
        SimNPO(margin=-1)
