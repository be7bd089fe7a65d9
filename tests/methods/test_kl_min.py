"""Test KL minimisation: gradient ascent on the forget rows, KL divergence to the reference on the retain rows."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.errors import RecipeError
from llm_forget.methods.grad_ascent import GradAscent
from llm_forget.methods.kl_min import KLMin
from llm_forget.scores import AnswerScores
from llm_forget.utils.build import build


def test_computed_by_hand_and_equal_to_gradient_ascent() -> None:
    """Tokens of probability ½ and ⅛: (ln ½ + ln ⅛) / 2 = −2 ln 2."""
    logps, mask = torch.tensor([[0.5, 0.125]]).log(), torch.ones(1, 2, dtype=torch.bool)
    scores = AnswerScores(logps, mask, mask.long())
    assert KLMin().forget_loss(scores).tolist() == pytest.approx([-2 * math.log(2)])
    assert KLMin().forget_loss(scores).tolist() == GradAscent().forget_loss(scores).tolist()


def test_its_retain_term_is_kl_and_it_has_no_options() -> None:
    assert (KLMin.default_retain, KLMin.bounded) == ("kl", False)
    with pytest.raises(RecipeError, match="beta: unknown key"):
        build(KLMin, {"beta": 0.1}, "method kl_min")
