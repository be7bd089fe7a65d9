"""KL divergence to the reference at the retain answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs, needed
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores, kl_divergence


def kl_loss(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``KL(π₀ ‖ π)``, without prompt and padding.

    Args:
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0, and 0 if both are equal. π₀ = (1/2, 1/2) against π = (3/4, 1/4) gives ½ ln(4/3) ≈ 0.1438.

    Source: TOFU, arXiv:2401.06121, section 4 (KL minimisation).
    """
    per_token = kl_divergence(reference_logits.detach(), logits)
    return (per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class KL(RetainTerm):
    """KL(π₀ ‖ π) on the retain answers. It keeps the whole distribution and costs a reference forward in every step."""

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "TOFU, arXiv:2401.06121"

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each retain answer."""
        logits = needed(retain.logits, "kl", "the policy's logits")
        reference = needed(retain.reference_logits, "kl", "the reference's logits")
        return kl_loss(logits, reference, retain.mask)
