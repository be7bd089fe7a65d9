"""CE-U, cross-entropy unlearning: train on the model's own distribution with the true token removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def ce_u_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy with the policy's own distribution, without the true token, as the target.

    ``loss = mean over answer tokens of CE(softmax(z with z_{y_t} = −∞), π)``; the target is detached.

    Args:
        logits: (B, A, V) the policy's logits.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0. π = (1/2, 1/4, 1/4) with y the first token has the target (0, 1/2, 1/2) and the loss ln 4.
        The gradient with respect to z_y is p(y), so it vanishes once the token is forgotten.

    Source: Yang 2025, arXiv:2503.01224.
    """
    without = logits.detach().scatter(-1, tokens[..., None], -math.inf).softmax(-1)
    cross_entropy = -(without * logits.log_softmax(-1)).sum(-1)
    return mean_over_answer(cross_entropy, mask)


@dataclass(frozen=True)
class CEU(Method):
    """CE-U. It has no default retain term and works with any.

    Attributes:
        skip_first: number of tokens at the start of the answer that are not trained on; 1 in OpenUnlearning.
    """

    skip_first: int = 1

    needs: ClassVar[Needs] = Needs(logits=True)
    paper: ClassVar[str] = "Yang 2025, arXiv:2503.01224"

    def __post_init__(self) -> None:
        check_number("ce_u", "skip_first", self.skip_first, at_least=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) CE-U loss of each forget answer."""
        logits = needed(forget.logits, "ce_u", "the policy's logits")
        late = torch.arange(forget.mask.shape[-1], device=forget.mask.device) >= self.skip_first
        return ce_u_loss(logits, forget.tokens, forget.mask & late)
