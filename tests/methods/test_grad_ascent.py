"""Test gradient ascent against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.grad_ascent import GradAscent, grad_ascent_loss
from llm_forget.scores import AnswerScores


def test_computed_by_hand() -> None:
    """Tokens of probability ½ and ⅛: (ln ½ + ln ⅛) / 2 = −2 ln 2. One token of ¼ and one masked: ln ¼ = −2 ln 2 too."""
    logps = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    assert grad_ascent_loss(logps, mask).tolist() == pytest.approx([-2 * math.log(2)] * 2)


def test_gradient_is_the_same_for_likely_and_unlikely_tokens() -> None:
    """d/d log p_t of (1/n) Σ log p_t = 1/n: it never vanishes, so the method needs a stop rule."""
    logps = torch.tensor([[-0.01, -50.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    grad_ascent_loss(logps * mask, mask).sum().backward()
    assert logps.grad.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]


def test_the_method_is_that_loss() -> None:
    logps, mask = torch.tensor([[-1.0, -3.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert GradAscent().forget_loss(AnswerScores(logps, mask, mask.long())).tolist() == [-2.0]
    assert (GradAscent.default_retain, GradAscent.bounded, GradAscent.towards) == (None, False, False)
