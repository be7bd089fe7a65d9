"""Test CE-U against a value computed by hand, its gradient, and the skipped tokens."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.ce_u import CEU, ce_u_loss
from llm_forget.scores import AnswerScores

ONE = torch.ones(1, 1, dtype=torch.bool)
FIRST = torch.zeros(1, 1, dtype=torch.long)


def test_computed_by_hand() -> None:
    """For π = (½, ¼, ¼) and y the first token, the target is (0, ½, ½), so the loss is −ln ¼ = ln 4."""
    loss = ce_u_loss(torch.tensor([[[0.5, 0.25, 0.25]]]).log(), FIRST, ONE)
    assert loss.tolist() == pytest.approx([math.log(4)])


def test_the_gradient_at_the_true_token_is_its_probability() -> None:
    """∇_z CE(q, π) = π − q with q(y) = 0: the gradient of all tokens vanishes once the token is forgotten."""
    for certain in (0.0, 3.0, -60.0):
        logits = torch.tensor([[[certain, 0.5, -0.5]]], requires_grad=True)
        ce_u_loss(logits, FIRST, ONE).sum().backward()
        p = logits.detach().softmax(-1)[0, 0]
        assert logits.grad[0, 0, 0].item() == pytest.approx(p[0].item(), abs=1e-6)
        assert logits.grad.sum().item() == pytest.approx(0, abs=1e-6)
        if certain < -50:
            assert logits.grad.abs().max() < 1e-6


def test_skips_the_first_tokens() -> None:
    mask, tokens = torch.tensor([[True, True, True], [True, False, False]]), torch.zeros(2, 3, dtype=torch.long)
    logits = torch.randn(2, 3, 5)
    scores = AnswerScores(torch.zeros(2, 3), mask, tokens, logits=logits)
    whole, late = (CEU(skip_first=count).forget_loss(scores) for count in (0, 1))
    assert whole.tolist() == ce_u_loss(logits, tokens, mask).tolist()
    assert late[0].item() == pytest.approx(ce_u_loss(logits[:1, 1:], tokens[:1, 1:], mask[:1, 1:]).item())
    assert late[1].item() == 0, "an answer of one token has nothing left"
    with pytest.raises(ValueError, match="skip_first is -1"):
        CEU(skip_first=-1)
