"""Test the cross-entropy on an alternative answer: its value, and that the forget answer has no effect."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.adapter_subtraction import adapter_subtraction_loss
from llm_forget.methods.idk_nll import IdkNLL, idk_nll_loss
from llm_forget.scores import AnswerScores

MASK = torch.tensor([[True, True], [True, False]])


def test_computed_by_hand() -> None:
    """Tokens of probability ½ and ⅛: −(ln ½ + ln ⅛)/2 = 2 ln 2; a single one of ¼: ln 4."""
    logps = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()
    assert idk_nll_loss(logps, MASK).tolist() == pytest.approx([2 * math.log(2), math.log(4)])
    assert idk_nll_loss(logps, MASK).tolist() == adapter_subtraction_loss(logps, MASK).tolist(), (
        "the same, of another answer"
    )


def test_only_the_alternative_gets_a_gradient() -> None:
    forget, other = (torch.full((2, 2), value, requires_grad=True) for value in (-1.0, -2.0))
    tokens = torch.zeros(2, 2, dtype=torch.long)
    IdkNLL().forget_loss(
        AnswerScores(forget * MASK, MASK, tokens, alternative=AnswerScores(other * MASK, MASK, tokens))
    ).sum().backward()
    assert forget.grad is None
    assert other.grad.tolist() == [[-0.5, -0.5], [-1.0, 0.0]]


def test_a_missing_alternative_is_an_error() -> None:
    with pytest.raises(ValueError, match="idk_nll needs an alternative answer"):
        IdkNLL().forget_loss(AnswerScores(torch.zeros(2, 2), MASK, MASK.long()))
