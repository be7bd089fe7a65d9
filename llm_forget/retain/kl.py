"""Stay close to the reference: KL divergence on the retain answers' positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores, kl_divergence


def kl_loss(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``KL(π₀ ‖ π)``; prompt and padding positions do not count.

    Args:
        logits: (B, A, V) the policy's.
        reference_logits: (B, A, V) the reference's; no gradient flows into it.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0, and 0 where both agree. π₀ = (1/2, 1/2) against π = (3/4, 1/4) gives ½ ln(4/3) ≈ 0.1438.

    Source: TOFU, arXiv:2401.06121, section 4 (KL minimisation).
    """
    per_token = kl_divergence(reference_logits.detach(), logits)
    return (per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class KL(RetainTerm):
    """KL(π₀ ‖ π) on retain answers: keeps the whole distribution, at the cost of a reference forward every step."""

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each retain answer."""
        if retain.logits is None or retain.reference_logits is None:
            raise ValueError("kl needs the logits of policy and reference; the trainer provides them from `needs`")
        return kl_loss(retain.logits, retain.reference_logits, retain.mask)
