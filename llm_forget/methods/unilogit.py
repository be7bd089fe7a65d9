"""Unilogit: self-distillation from the model's own distribution, with the true token as likely as by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, kl_divergence, mean_over_answer


def unilogit_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """KL(q ‖ π) with q the policy's own distribution in which the true token has probability 1/V.

    The logit of y becomes ``log Σ_{v≠y} exp z_v − log(V − 1)``; the other tokens keep their proportions. q is detached.

    Args:
        logits: (B, A, V) the policy's logits.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0, and 0 where y has probability 1/V. V = 2 and π = (¾, ¼) give ½ ln(4/3) ≈ 0.1438.

    Source: Vasilev et al. 2025, arXiv:2505.06027. Its abstract does not give the direction of the divergence; KL(q ‖ π) is ours.
    """
    own, chosen = logits.detach(), tokens[..., None]
    others = own.scatter(-1, chosen, float("-inf")).logsumexp(-1, keepdim=True)
    target = own.scatter(-1, chosen, others - math.log(logits.shape[-1] - 1))
    return mean_over_answer(kl_divergence(target, logits), mask)


@dataclass(frozen=True)
class Unilogit(Method):
    """Unilogit, without hyper-parameters. The target is computed anew in each step, so the loss never freezes on old outputs."""

    needs: ClassVar[Needs] = Needs(logits=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Vasilev et al. 2025, arXiv:2505.06027"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence from chance on each forget answer."""
        logits = needed(forget.logits, "unilogit", "the policy's logits")
        return unilogit_loss(logits, forget.tokens, forget.mask)
