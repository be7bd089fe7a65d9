"""AltPO: DPO's loss at NPO's scale, and answers that the model writes itself."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.alt_npo import AltNPO
from llm_forget.methods.dpo import DPO
from llm_forget.scores import AnswerScores


def scores(policy: float, other: float) -> AnswerScores:
    """One token each; both answers had log-prob −2 under the reference."""
    mask, known = torch.ones(1, 1, dtype=torch.bool), torch.tensor([-2.0])
    alternative = AnswerScores(torch.tensor([[other]]), mask, mask.long(), reference_logps=known)
    return AnswerScores(torch.tensor([[policy]]), mask, mask.long(), reference_logps=known, alternative=alternative)


def test_computed_by_hand() -> None:
    """β = 1, r(y⁺) − r(y) = ln 3: −2 log σ(ln 3) = 2 ln(4/3). At π = π₀ it is 2 ln 2."""
    method = AltNPO(beta=1.0)
    assert method.forget_loss(scores(-2 - math.log(3), -2)).tolist() == pytest.approx([2 * math.log(4 / 3)], rel=1e-5)
    assert method.forget_loss(scores(-2, -2)).tolist() == pytest.approx([2 * math.log(2)])


def test_is_dpo_at_npos_scale() -> None:
    some = scores(-3.5, -1.25)
    assert AltNPO(beta=0.3).forget_loss(some).tolist() == DPO(beta=0.3, scale=2 / 0.3).forget_loss(some).tolist()


def test_asks_for_model_written_answers_and_refuses_a_bad_beta() -> None:
    assert AltNPO.alternative_source == "model"
    assert DPO.alternative_source == "refusals"
    with pytest.raises(ValueError, match="alt_npo: beta is -1"):
        AltNPO(beta=-1)
