"""UNDIAL: self-distillation from the reference's own logits, with the forget answer's tokens pushed down in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def undial_loss(logits: Tensor, reference_logits: Tensor, tokens: Tensor, mask: Tensor, *, strength: float) -> Tensor:
    """Cross-entropy against the reference with the answer's own token lowered by ``strength``.

    ``loss = mean over answer tokens of CE(softmax(z₀ − γ · onehot(y_t)), π)``

    Args:
        logits: (B, A, V) the policy's.
        reference_logits: (B, A, V) the reference's; no gradient flows into it.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.
        strength: γ ≥ 0; with 0 it is distillation from the reference, without gradient at π = π₀.

    Returns:
        (B,) nats per token, at least the entropy of the target. Two tokens with z₀ = (ln 3, 0), y the first and γ = ln 3 give
        the target (1/2, 1/2), against π = (3/4, 1/4) a loss of ½ ln(16/3) ≈ 0.8370.

    Source: Dong et al. 2024, arXiv:2402.10052, self-distillation with adjusted logits.
    """
    lowered = reference_logits.detach().scatter_add(
        -1, tokens[..., None], reference_logits.new_full((*tokens.shape, 1), -strength)
    )
    cross_entropy = -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return mean_over_answer(cross_entropy, mask)


@dataclass(frozen=True)
class Undial(Method):
    """UNDIAL; it has no retain term of its own, and takes any.

    Attributes:
        strength: γ, how far the answer's logits are lowered; 10 in OpenUnlearning's configuration (UNDIAL.yaml, read in a
            copy, where it is called beta), which uses no retain term. The paper's own tables were not re-read.
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
