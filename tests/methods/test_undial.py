"""Test UNDIAL against a value computed by hand; with strength 0 it is distillation with zero gradient at the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.undial import Undial, undial_loss

ONE = torch.ones(1, 1, dtype=torch.bool)
FIRST = torch.zeros(1, 1, dtype=torch.long)


def test_computed_by_hand() -> None:
    """z₀ = (ln 3, 0), γ = ln 3: target (½, ½). Against π = (¾, ¼): −½ ln ¾ − ½ ln ¼ = ½ ln(16/3) = 0.8370."""
    reference = torch.tensor([[[math.log(3), 0.0]]])
    policy = torch.tensor([[[0.75, 0.25]]]).log()
    loss = undial_loss(policy, reference, FIRST, ONE, strength=math.log(3))
    assert loss.tolist() == pytest.approx([0.5 * math.log(16 / 3)], rel=1e-5)


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=20)
def test_zero_strength_has_no_gradient_at_the_reference_and_positive_strength_lowers_the_answer(seed: int) -> None:
    """∇_z CE(q, π) = π − q is 0 for q = π, and p(y) − q(y) > 0 if the target lowers the answer."""
    logits = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(seed))
    mask, tokens = torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3), 2)
    for strength in (0.0, 10.0):
        policy = logits.clone().requires_grad_()
        undial_loss(policy, logits, tokens, mask, strength=strength).sum().backward()
        if strength == 0:
            assert policy.grad.abs().max() < 1e-6
        else:
            assert policy.grad[..., 2].min() > 0


def test_the_reference_is_not_changed() -> None:
    reference = torch.tensor([[[1.0, 0.0]]])
    undial_loss(torch.zeros(1, 1, 2), reference, FIRST, ONE, strength=5.0)
    assert reference.tolist() == [[[1.0, 0.0]]]


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="strength is -1"):
        Undial(strength=-1)
