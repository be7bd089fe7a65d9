"""Inverted hinge: lower the probability of the true token and raise only that of the most likely other token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def inverted_hinge_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``1 + p(y_t) − max over v ≠ y_t of p(v)``.

    Args:
        logits: (B, A, V) the policy's logits.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) in [0, 2]: 2 if the true token is certain, 0 if another token is. π = (1/2, 3/8, 1/8), y the first, gives 1 + 1/8.

    Source: Cha et al. 2024, arXiv:2408.06621 (LoKU), the inverted hinge loss.
    """
    probabilities = logits.softmax(-1)
    true = probabilities.gather(-1, tokens[..., None]).squeeze(-1)
    rival = probabilities.scatter(-1, tokens[..., None], -math.inf).amax(-1)
    return mean_over_answer(1.0 + true - rival, mask)


@dataclass(frozen=True)
class InvertedHinge(Method):
    """The inverted hinge loss with a retain term (arXiv:2408.06621), without LoKU's initialisation of the adapter."""

    needs: ClassVar[Needs] = Needs(logits=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Cha et al. 2024, arXiv:2408.06621"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) inverted hinge loss of each forget answer."""
        logits = needed(forget.logits, "inverted_hinge", "the policy's logits")
        return inverted_hinge_loss(logits, forget.tokens, forget.mask)
