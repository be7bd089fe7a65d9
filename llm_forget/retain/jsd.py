"""Stay close to the reference, and no closer than can be: Jensen–Shannon divergence on the retain answers' positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Needs, needed
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores, kl_divergence, mean_over_answer


def jsd_loss(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``½ KL(π₀ ‖ m) + ½ KL(π ‖ m)`` with ``m = ½ (π₀ + π)``.

    Args:
        logits: (B, A, V) the policy's.
        reference_logits: (B, A, V) the reference's; no gradient flows into it.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, in [0, ln 2], and 0 where both agree. (1, 0) against (0, 1) gives ln 2.

    Source: Singh et al. 2025, arXiv:2509.02820, retain loss of JensUn.
    """
    policy, reference = logits.log_softmax(-1), reference_logits.detach().log_softmax(-1)
    middle = torch.logaddexp(policy, reference) - math.log(2.0)
    return mean_over_answer(0.5 * (kl_divergence(reference, middle) + kl_divergence(policy, middle)), mask)


@dataclass(frozen=True)
class JSD(RetainTerm):
    """JSD(π, π₀) on retain answers: bounded, so that one odd row cannot drown the rest."""

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each retain answer."""
        logits = needed(retain.logits, "jsd", "the policy's logits")
        reference = needed(retain.reference_logits, "jsd", "the reference's logits")
        return jsd_loss(logits, reference, retain.mask)
