"""Preference optimisation by cross-entropy: train on an alternative answer such as "I don't know"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores


def idk_nll_loss(alternative_token_logps: Tensor, alternative_mask: Tensor) -> Tensor:
    """Cross-entropy of the alternative answer, ``CE(y⁺) = −(1/|y⁺|) Σ_t log p_t``. The forget answer itself is not used.

    Args:
        alternative_token_logps: (B, A) log-probs of the alternative tokens in nats, 0 where masked.
        alternative_mask: (B, A) True at alternative tokens.

    Returns:
        (B,) nats per token, ≥ 0. Two tokens of probability 1/2 and 1/8 give 2 ln 2 ≈ 1.3863.

    Source: TOFU, arXiv:2401.06121, section 4 (preference optimisation).
    """
    return -alternative_token_logps.sum(-1) / alternative_mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class IdkNLL(Method):
    """Cross-entropy on a refusal, with a retain term (arXiv:2401.06121 calls it preference optimisation)."""

    needs: ClassVar[Needs] = Needs(alternative=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "TOFU, arXiv:2401.06121"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) cross-entropy of the alternative of each forget answer."""
        other = needed(forget.alternative, "idk_nll", "an alternative answer")
        return idk_nll_loss(other.token_logps, other.mask)
