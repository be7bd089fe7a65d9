"""UNDIAL: self-distillation from the reference's logits, with the logits of the answer tokens lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def undial_loss(logits: Tensor, reference_logits: Tensor, tokens: Tensor, mask: Tensor, *, strength: float) -> Tensor:
    """Cross-entropy with the reference as the target, after the logit of the answer token is lowered by ``strength``.

    ``loss = mean over answer tokens of CE(softmax(z₀ − γ · onehot(y_t)), π)``

    Args:
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.
        strength: γ ≥ 0; 0 is plain distillation from the reference, with zero gradient at π = π₀.

    Returns:
        (B,) nats per token, at least the entropy of the target. z₀ = (ln 3, 0) with y the first token and γ = ln 3 gives
        the target (1/2, 1/2); π = (3/4, 1/4) then has the loss ½ ln(16/3) ≈ 0.8370.

    Source: Dong et al. 2024, arXiv:2402.10052, self-distillation with adjusted logits.
    """
    lowered = reference_logits.detach().scatter_add(
        -1, tokens[..., None], reference_logits.new_full((*tokens.shape, 1), -strength)
    )
    cross_entropy = -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return mean_over_answer(cross_entropy, mask)


@dataclass(frozen=True)
class Undial(Method):
    """UNDIAL. It has no default retain term and works with any.

    Attributes:
        strength: γ ≥ 0, by which the logits are lowered; 10 in OpenUnlearning's configuration, which calls it beta and uses no
            retain term.
    """

    strength: float = 10.0

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "Dong et al. 2024, arXiv:2402.10052"

    def __post_init__(self) -> None:
        check_number("undial", "strength", self.strength, at_least=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) distillation loss on each forget answer."""
        logits = needed(forget.logits, "undial", "the policy's logits")
        reference = needed(forget.reference_logits, "undial", "the reference's logits")
        return undial_loss(logits, reference, forget.tokens, forget.mask, strength=self.strength)
