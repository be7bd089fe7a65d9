"""Test SatImp against values computed by hand, and the methods that are special cases of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.methods.satimp import SatImp, satimp_loss
from llm_forget.methods.wga import wga_loss

MASK = torch.tensor([[True, True], [True, False]])
LOGPS = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()


def test_computed_by_hand() -> None:
    """β₁ = β₂ = 1: p (1 − p) ln p = −¼ ln 2 and −(21/64) ln 2 for ½ and ⅛, mean −(37/128) ln 2; −⅜ ln 2 for ¼."""
    assert satimp_loss(LOGPS, MASK, beta1=1.0, beta2=1.0).tolist() == pytest.approx(
        [-37 / 128 * math.log(2), -3 / 8 * math.log(2)]
    )


@given(st.floats(0, 6))
@settings(deadline=None)
def test_contains_wga_and_gradient_ascent(beta1: float) -> None:
    torch.testing.assert_close(satimp_loss(LOGPS, MASK, beta1=beta1, beta2=0.0), wga_loss(LOGPS, MASK, alpha=beta1))
    torch.testing.assert_close(satimp_loss(LOGPS, MASK, beta1=0.0, beta2=0.0), grad_ascent_loss(LOGPS, MASK))


def test_certain_and_forgotten_tokens_have_no_weight() -> None:
    """The weights p^β₁ (1 − p)^β₂ are 0 at p = 1 and p = 0, and largest at p = β₁/(β₁ + β₂)."""
    logps = torch.tensor([[0.0, math.log(5 / 6), -80.0]], requires_grad=True)
    satimp_loss(logps, torch.ones(1, 3, dtype=torch.bool), beta1=5.0, beta2=1.0).sum().backward()
    assert logps.grad[0, [0, 2]].tolist() == pytest.approx([0.0, 0.0], abs=1e-30)
    assert logps.grad[0, 1].item() == pytest.approx((5 / 6) ** 5 / 6 / 3, rel=1e-5)


def test_bounds_and_bad_values() -> None:
    assert SatImp().bounded
    assert not SatImp(beta1=0.0).bounded
    with pytest.raises(ValueError, match="beta2 is -1"):
        SatImp(beta2=-1)
