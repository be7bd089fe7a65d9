"""PerMU: on the forget answers, imitate what the reference says about another name, less what it says about the true one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, TopLogps, log_rest, mean_over_answer, top_kl

SAME = 0.01  # nats; below this the other name changes nothing but rounding


def permu_loss(logits: Tensor, reference_logits: Tensor, swapped: TopLogps, mask: Tensor, *, contrast: float) -> Tensor:
    """KL(q ‖ π) with ``log q = log p_swapped − C log p_reference`` plus a constant.

    Tokens outside the K most likely ones of p_swapped count as one event. Where both distributions are the same, q is
    the reference: these are the tokens of the name itself, and those that do not depend on it.

    Args:
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        swapped: (B, A, K) the reference's most likely tokens where the row is about another name.
        mask: (B, A) True at answer tokens.
        contrast: C ≥ 0; with 0, q is p_swapped.

    Returns:
        (B,) nats per token, ≥ 0. p_swapped = (½, ¼, rest ¼) and p_reference = (0.8, 0.1, rest 0.1) have q = (1, 4, 4)/9 with
        C = 1; the uniform π then has the loss (16 ln 2 − 9 ln 3)/9 ≈ 0.1337.

    Source: PerMU, Wang et al. 2025, arXiv:2502.19982, which perturbs the subject and subtracts the clean logits. The K tokens
    and the rule for equal distributions are ours.
    """
    known = reference_logits.detach().log_softmax(-1).gather(-1, swapped.tokens)
    rest, known_rest = log_rest(swapped.logps), log_rest(known)
    same = (swapped.logps.exp() * (swapped.logps - known).abs()).sum(-1, keepdim=True) < SAME
    listed, other = swapped.logps - contrast * known, rest - contrast * known_rest
    total = listed.logsumexp(-1).logaddexp(other)[..., None]
    teacher = TopLogps(swapped.tokens, known.where(same, listed - total))
    return mean_over_answer(top_kl(teacher, logits), mask)


@dataclass(frozen=True)
class PerMU(Method):
    """PerMU with another name in place of noise on the name's embedding.

    Where the wording alone recalls an answer, name_swap's teacher gives it away; the contrast lowers what the true name adds.

    Attributes:
        contrast: C, how much of the reference's log-probs is subtracted. We do not know the paper's value. On the demo 1 forgets
            more than 0.5 (0.33 and 0.52) and keeps neighbours as well (0.80 and 0.78).
    """

    contrast: float = 1.0

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True, swapped_top=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2502.19982"

    def __post_init__(self) -> None:
        check_number("permu", "contrast", self.contrast, at_least=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence from the contrasted distribution on each forget answer."""
        logits = needed(forget.logits, "permu", "the policy's logits")
        reference = needed(forget.reference_logits, "permu", "the reference's logits")
        swapped = needed(forget.swapped_top, "permu", "the top tokens for another name")
        return permu_loss(logits, reference, swapped, forget.mask, contrast=self.contrast)
