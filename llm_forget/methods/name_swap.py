"""Name swap: distil what the reference says to the same question about another name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, TopLogps, mean_over_answer, top_kl


def name_swap_loss(logits: Tensor, teacher: TopLogps, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``KL(p_T ‖ π)``, p_T the reference's distribution where the row is about a stand-in.

    Args:
        logits: (B, A, V) the policy's logits.
        teacher: (B, A, K) the most likely tokens of p_T; at the tokens of the name itself, those of the reference on the row.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0. A teacher of (½, ½) and a policy of (¾, ¼) give ½ ln(4/3) ≈ 0.1438.

    Source: Liu et al. 2024, arXiv:2407.16997, the counterfactual teacher; with one stand-in, as on TOFU.
    """
    return mean_over_answer(top_kl(teacher, logits), mask)


@dataclass(frozen=True)
class NameSwap(Method):
    """The teacher is computed once, so that a step costs no reference forward. Rows without a name stay as they are.

    On heavily memorised data the wording alone recalls the answer, and the teacher with it.
    """

    needs: ClassVar[Needs] = Needs(logits=True, swapped_top=True)
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2407.16997"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence from the teacher on each forget answer."""
        logits = needed(forget.logits, "name_swap", "the policy's logits")
        teacher = needed(forget.swapped_top, "name_swap", "the teacher's top tokens")
        return name_swap_loss(logits, teacher, forget.mask)
