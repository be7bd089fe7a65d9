"""Cross-entropy of the retain answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores


def nll_loss(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-probability of the answer tokens, ``CE(y) = −(1/|y|) Σ_t log p_t``.

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0. Two tokens of probability 1/2 and 1/8 give 2 ln 2 ≈ 1.3863.
    """
    return -token_logps.sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class NLL(RetainTerm):
    """Cross-entropy on the retain answers: the retain loss of gradient difference (TOFU, arXiv:2401.06121)."""

    paper: ClassVar[str] = "TOFU, arXiv:2401.06121"

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) cross-entropy of each retain answer."""
        return nll_loss(retain.token_logps, retain.mask)
