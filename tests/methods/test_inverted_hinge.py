"""Test the inverted hinge against values computed by hand, its bounds, and the two tokens that get a gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.inverted_hinge import InvertedHinge, inverted_hinge_loss
from llm_forget.scores import AnswerScores

MASK = torch.tensor([[True, True], [True, False]])


def test_computed_by_hand() -> None:
    """(½, ⅜, ⅛): 1 + ½ − ⅜ = 9/8 for the first token, 1 + ⅜ − ½ = 7/8 for the second; their mean is 1."""
    logits = torch.tensor([0.5, 0.375, 0.125]).log().expand(2, 2, 3)
    tokens = torch.tensor([[0, 1], [0, 0]])
    assert inverted_hinge_loss(logits, tokens, MASK).tolist() == pytest.approx([1.0, 1.125])


@given(st.integers(0, 2**16), st.floats(0.1, 40))
@settings(deadline=None, max_examples=40)
def test_between_zero_and_two(seed: int, spread: float) -> None:
    logits = spread * torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(seed))
    losses = inverted_hinge_loss(logits, torch.zeros(2, 2, dtype=torch.long), MASK)
    assert losses.min() >= -1e-6
    assert losses.max() <= 2 + 1e-6


def test_limits() -> None:
    """The loss is 2 if the answer is certain and 0 if another token is certain; the gradient raises that token."""
    one, answer = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    for logits, value in (([50.0, 0, 0], 2.0), ([0, 50.0, 0], 0.0)):
        assert inverted_hinge_loss(torch.tensor([[logits]]), answer, one).item() == pytest.approx(value)
    leaf = torch.tensor([[[2.0, 1.0, -1.0]]], requires_grad=True)
    inverted_hinge_loss(leaf, answer, one).sum().backward()
    assert leaf.grad[0, 0, 0] > 0
    assert leaf.grad[0, 0, 1] < 0


def test_missing_logits_are_an_error() -> None:
    with pytest.raises(ValueError, match="inverted_hinge needs the policy's logits"):
        InvertedHinge().forget_loss(AnswerScores(torch.zeros(2, 2), MASK, MASK.long()))
