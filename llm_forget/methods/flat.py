"""FLAT: maximise the f-divergence between an alternative answer and the forget answer, with forget data only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import softplus

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, mean_over_answer

Divergence = Literal["total_variation", "kl", "jensen_shannon", "pearson"]


def flat_loss(alternative_probability: Tensor, forget_probability: Tensor, *, divergence: Divergence) -> Tensor:
    """``−[g*(P⁺) − f*(g*(P))]``: the negative variational form of the f-divergence at the two answers.

    ================  ==================  =========================
    divergence        g*(v)               f*(g*(v))
    ================  ==================  =========================
    total_variation   ½ tanh v            ½ tanh v
    kl                v                   exp(v − 1)
    jensen_shannon    log 2 − log(1+e⁻ᵛ)  log(1 + eᵛ) − log 2
    pearson           v                   v²/4 + v
    ================  ==================  =========================

    Args:
        alternative_probability: (B,) mean probability of the alternative's tokens, P⁺.
        forget_probability: (B,) mean probability of the forget answer's tokens, P.
        divergence: the f-divergence.

    Returns:
        (B,), bounded because both probabilities are. P⁺ = P = 0 gives e⁻¹ for KL and 0 for the other three.

    Source: Wang et al. 2024, arXiv:2410.11143, equation 4 and the table of g* and f*. The Jensen–Shannon signs follow the
    variational form of the divergence; the authors' code differs from it by constants.
    """
    good, bad = alternative_probability, forget_probability
    if divergence == "total_variation":
        return 0.5 * bad.tanh() - 0.5 * good.tanh()
    if divergence == "kl":
        return (bad - 1.0).exp() - good
    if divergence == "jensen_shannon":
        return (softplus(bad) - math.log(2.0)) - (math.log(2.0) - softplus(-good))
    return bad.square() / 4.0 + bad - good


@dataclass(frozen=True)
class FLAT(Method):
    """FLAT. It uses forget data only: no retain term and no reference.

    Attributes:
        divergence: the f-divergence. The paper reports four; total variation is the default of the authors' code.
    """

    divergence: Divergence = "total_variation"

    needs: ClassVar[Needs] = Needs(alternative=True)
    paper: ClassVar[str] = "Wang et al. 2024, arXiv:2410.11143"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) FLAT loss of each pair of answers."""
        other = needed(forget.alternative, "flat", "an alternative answer")
        good, bad = (mean_over_answer(scores.token_logps.exp(), scores.mask) for scores in (other, forget))
        return flat_loss(good, bad, divergence=self.divergence) * (forget.mask.any(-1) | other.mask.any(-1))
