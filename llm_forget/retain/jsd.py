"""Jensen–Shannon divergence to the reference at the retain answers."""

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
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, in [0, ln 2], and 0 if both are equal. (1, 0) against (0, 1) gives ln 2.

    Source: Singh et al. 2025, arXiv:2509.02820, retain loss of JensUn.
    """
    policy, reference = logits.log_softmax(-1), reference_logits.detach().log_softmax(-1)
    middle = torch.logaddexp(policy, reference) - math.log(2.0)
    return mean_over_answer(0.5 * (kl_divergence(reference, middle) + kl_divergence(policy, middle)), mask)


@dataclass(frozen=True)
class JSD(RetainTerm):
    """JSD(π, π₀) on the retain answers. It is bounded, so no single row can dominate the loss."""

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "Singh et al. 2025, arXiv:2509.02820"

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each retain answer."""
        logits = needed(retain.logits, "jsd", "the policy's logits")
        reference = needed(retain.reference_logits, "jsd", "the reference's logits")
        return jsd_loss(logits, reference, retain.mask)
