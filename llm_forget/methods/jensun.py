"""JensUn: Jensen–Shannon divergence to a refusal on the forget answers and to the reference on the retain answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def jensun_loss(target_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of the Jensen–Shannon divergence between π and a point mass at the target token.

    For a point mass at token k the divergence depends only on p = π(k):
    ``JSD(π, δ_k) = ½ [−log((1 + p)/2) + p log(2p/(1 + p)) + (1 − p) log 2]``.

    Args:
        target_logps: (B, A) log-prob of the target token at each position of the forget answer, nats.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, in [0, ln 2]: ln 2 if the target is impossible, 0 if it is certain. p = 1/2 gives
        ½ [ln(4/3) + ½ ln(2/3) + ½ ln 2] = ¾ ln(4/3) ≈ 0.2158.

    Source: Singh et al. 2025, arXiv:2509.02820, forget loss.
    """
    p = target_logps.exp()
    log_sum = p.log1p() - math.log(2.0)  # log((1 + p)/2)
    divergence = 0.5 * (-log_sum + p * (target_logps - log_sum) + (1.0 - p) * math.log(2.0))
    return mean_over_answer(divergence, mask)


@dataclass(frozen=True)
class JensUn(Method):
    """JensUn with its own retain term, ``jsd``.

    The policy reads the forget answer by teacher forcing. The target at each position is one token of a refusal, and the
    refusal is repeated over the length of the answer. The paper uses "No idea"; here the refusal comes from the list, or from
    the recipe's ``alternative``.
    """

    needs: ClassVar[Needs] = Needs(logits=True, alternative_tokens=True)
    default_retain: ClassVar[str | None] = "jsd"
    paper: ClassVar[str] = "Singh et al. 2025, arXiv:2509.02820"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence of each forget answer from a refusal."""
        logits = needed(forget.logits, "jensun", "the policy's logits")
        refusal = needed(forget.alternative_tokens, "jensun", "an alternative answer")
        lengths = (refusal >= 0).sum(-1, keepdim=True).clamp(min=1)
        position = torch.arange(forget.mask.shape[-1], device=refusal.device)[None, :] % lengths
        target = refusal.gather(-1, position).clamp(min=0)
        chosen = logits.gather(-1, target[..., None]).squeeze(-1) - logits.logsumexp(-1)
        return jensun_loss(chosen, forget.mask)
