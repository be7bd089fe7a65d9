"""Gradient ascent: maximise the cross-entropy of the forget answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method
from llm_forget.scores import AnswerScores


def grad_ascent_loss(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability of the answer tokens, which the optimiser minimises.

    ``loss = −CE(y) = (1/|y|) Σ_t log p_t``

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, in (−∞, 0], so unbounded below. Two tokens of probability 1/2 and 1/8 give
        (ln 1/2 + ln 1/8) / 2 = −2 ln 2 ≈ −1.3863.

    Source: Yao, Xu and Liu 2023, arXiv:2310.10683, the first term of its objective.
    """
    return token_logps.sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class GradAscent(Method):
    """Gradient ascent on the forget set only. It diverges, so the stop rule must end the run."""

    bounded: ClassVar[bool] = False
    paper: ClassVar[str] = "Yao et al. 2023, arXiv:2310.10683"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean log-probability of each forget answer."""
        return grad_ascent_loss(forget.token_logps, forget.mask)
