"""Test FLAT against values computed by hand, and the properties of all divergences."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.errors import RecipeError
from llm_forget.methods.flat import FLAT, Divergence, flat_loss
from llm_forget.scores import AnswerScores
from llm_forget.utils.build import build

every_divergence = pytest.mark.parametrize("divergence", get_args(Divergence))


@pytest.mark.parametrize(
    ("divergence", "good", "bad", "value"),
    [
        ("total_variation", 0.0, 1.0, 0.5 * math.tanh(1)),
        ("total_variation", 1.0, 0.0, -0.5 * math.tanh(1)),
        ("kl", 0.0, 0.0, math.exp(-1)),
        ("kl", 1.0, 1.0, 0.0),  # e⁰ − 1
        ("pearson", 0.25, 1.0, 1.0),  # ¼ + 1 − ¼
        # ln(1+e¹) − ln 2 − [ln 2 − ln(1+e⁰)] = ln((1+e)/2)
        ("jensen_shannon", 0.0, 1.0, math.log((1 + math.e) / 2)),
        ("jensen_shannon", 0.0, 0.0, 0.0),
    ],
)
def test_computed_by_hand(divergence: Divergence, good: float, bad: float, value: float) -> None:
    loss = flat_loss(torch.tensor([good]), torch.tensor([bad]), divergence=divergence)
    assert loss.tolist() == pytest.approx([value], abs=1e-6)


@every_divergence
@given(good=st.floats(0, 1), bad=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_always_raises_the_alternative_and_lowers_the_answer(divergence: Divergence, good: float, bad: float) -> None:
    both = torch.tensor([[good], [bad]], dtype=torch.float64, requires_grad=True)
    flat_loss(both[0], both[1], divergence=divergence).sum().backward()
    assert both.grad[0].item() < 0
    assert both.grad[1].item() > 0


def test_reads_mean_token_probabilities() -> None:
    """Tokens of probability ½ and ⅛ have the mean 5/16; the alternative's only token has ¼."""
    mask = torch.tensor([[True, True]])
    other = AnswerScores(torch.tensor([[0.25, 1.0]]).log(), torch.tensor([[True, False]]), mask.long())
    scores = AnswerScores(torch.tensor([[0.5, 0.125]]).log(), mask, mask.long(), alternative=other)
    expected = 0.5 * (math.tanh(5 / 16) - math.tanh(1 / 4))
    assert FLAT().forget_loss(scores).tolist() == pytest.approx([expected])


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"divergence.*'total_variation'"):
        build(FLAT, {"divergence": "hellinger"}, "method flat")
