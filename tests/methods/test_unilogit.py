"""Test Unilogit against a value computed by hand, and its target."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.unilogit import unilogit_loss

ONE = torch.ones(1, 1, dtype=torch.bool)
FIRST = torch.zeros(1, 1, dtype=torch.long)


def test_computed_by_hand() -> None:
    """V = 2: the target is (½, ½). Against π = (¾, ¼): ½ ln(2/3) + ½ ln 2 = ½ ln(4/3) = 0.1438."""
    policy = torch.tensor([[[0.75, 0.25]]]).log()
    assert unilogit_loss(policy, FIRST, ONE).tolist() == pytest.approx([0.5 * math.log(4 / 3)])


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=20)
def test_the_gradient_moves_the_true_token_to_chance_and_keeps_the_proportions_of_others(seed: int) -> None:
    """∇_z KL(q ‖ π) = π − q: at y it is p_y − 1/V; elsewhere it is p_v (1 − (1 − 1/V) / (1 − p_y)), proportional to p_v."""
    logits = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    unilogit_loss(logits, FIRST, ONE).sum().backward()
    assert logits.grad is not None
    p, gradient = logits.detach().softmax(-1)[0, 0], logits.grad[0, 0]
    assert float(gradient[0]) == pytest.approx(float(p[0]) - 1 / 6, abs=1e-5)
    torch.testing.assert_close(gradient[1:], p[1:] * (1 - (5 / 6) / (1 - p[0])), atol=1e-5, rtol=1e-3)


def test_chance_is_a_fixed_point() -> None:
    assert float(unilogit_loss(torch.zeros(1, 1, 5), FIRST, ONE)) == pytest.approx(0, abs=1e-6)
