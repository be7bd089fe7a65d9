"""JensUn: Jensen–Shannon divergence to a refusal on the forget answers, and to the reference on the retain answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def jensun_loss(target_logps: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of the Jensen–Shannon divergence between π and "this token for certain".

    Against a point mass at k the divergence depends on p = π(k) alone:
    ``JSD(π, δ_k) = ½ [−log((1 + p)/2) + p log(2p/(1 + p)) + (1 − p) log 2]``.

    Args:
        target_logps: (B, A) log-prob of the refusal's token at each position of the forget answer, nats.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, in [0, ln 2]: ln 2 when the token is impossible, 0 when it is certain. p = 1/2 gives
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

    At each position of the forget answer, read as it stands in the data, the target is one token of a refusal, over and
    over: "No idea" in the paper, both losses with weight 1 (JensUn-Unlearning, configs/trainer/JensUn.yaml, read in a
    copy). The code adds the tokens of the refusal into one target that is no distribution; here each position has one token
    in turn, as the paper's formula has it according to summaries of it. A refusal is taken from the list unless the
    recipe's ``alternative`` gives another.
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
