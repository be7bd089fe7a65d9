"""Test WGA against values computed by hand; without weights it is gradient ascent, with weights it is bounded."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.methods.wga import WGA, wga_loss

MASK = torch.tensor([[True, True], [True, False]])
LOGPS = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()


def test_computed_by_hand() -> None:
    """α = 1: ½ (½ ln ½ + ⅛ ln ⅛) = −½ (½ + ⅜) ln 2 = −(7/16) ln 2; ¼ ln ¼ = −½ ln 2."""
    assert wga_loss(LOGPS, MASK, alpha=1.0).tolist() == pytest.approx([-7 / 16 * math.log(2), -0.5 * math.log(2)])


def test_without_weights_it_is_gradient_ascent_and_then_unbounded() -> None:
    assert wga_loss(LOGPS, MASK, alpha=0.0).tolist() == grad_ascent_loss(LOGPS, MASK).tolist()
    assert not WGA(alpha=0.0).bounded
    assert WGA().bounded


@given(st.floats(-40, 0), st.floats(0.1, 4))
@settings(deadline=None)
def test_the_gradient_is_the_weight_and_the_value_is_bounded(logp: float, alpha: float) -> None:
    """d/d log p = p^α, since the weight is detached; p^α log p ≥ −1/(α e), with equality at log p = −1/α."""
    value = torch.tensor([[logp]], dtype=torch.float64, requires_grad=True)
    loss = wga_loss(value, torch.ones(1, 1, dtype=torch.bool), alpha=alpha)
    loss.sum().backward()
    assert float(value.grad) == pytest.approx(math.exp(alpha * logp))
    assert -1 / (alpha * math.e) - 1e-9 <= loss.item() <= 0


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha is -1"):
        WGA(alpha=-1)
