"""Test JensUn against a value computed by hand, the definition of the divergence, and the repetition of the refusal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.jensun import JensUn, jensun_loss
from llm_forget.scores import AnswerScores

ONE = torch.ones(1, 1, dtype=torch.bool)


def test_computed_by_hand() -> None:
    """P = ½: ½ [−ln ¾ + ½ ln(½ / ¾) + ½ ln 2] = ½ [ln(4/3) + ½ ln(4/3)] = ¾ ln(4/3)."""
    assert jensun_loss(torch.tensor([[math.log(0.5)]]), ONE).item() == pytest.approx(0.75 * math.log(4 / 3))


def test_limits() -> None:
    """The divergence is 0 if the target is certain, and its maximum ln 2 if the target is impossible."""
    assert jensun_loss(torch.tensor([[0.0]]), ONE).item() == pytest.approx(0, abs=1e-7)
    assert jensun_loss(torch.tensor([[-60.0]]), ONE).item() == pytest.approx(math.log(2))


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_is_the_divergence_from_a_point_mass(seed: int) -> None:
    p = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    target = torch.zeros(6, dtype=torch.float64)
    target[2] = 1.0
    middle = (p + target) / 2
    slow = 0.5 * ((p * (p / middle).log()).sum() - middle[2].log())
    assert jensun_loss(p[2].log().reshape(1, 1), ONE).item() == pytest.approx(slow.item())


def test_the_refusal_is_repeated_to_the_length_of_the_forget_answer() -> None:
    """For three answer tokens, a refusal of two tokens gives 4, 1, 4, and a refusal of one token gives 3, 3, 3."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    logits = torch.randn(2, 3, 5)
    refusal = torch.tensor([[4, 1], [3, -1]])
    losses = JensUn().forget_loss(
        AnswerScores(torch.zeros(2, 3), mask, mask.long(), logits=logits, alternative_tokens=refusal)
    )
    logps = logits.log_softmax(-1)
    chosen = torch.stack([torch.stack([logps[0, 0, 4], logps[0, 1, 1], logps[0, 2, 4]]), logps[1, :, 3]])
    torch.testing.assert_close(losses, jensun_loss(chosen, mask))


def test_a_missing_refusal_is_an_error() -> None:
    with pytest.raises(ValueError, match="jensun needs an alternative answer"):
        JensUn().forget_loss(AnswerScores(torch.zeros(1, 1), ONE, ONE.long(), logits=torch.zeros(1, 1, 3)))
