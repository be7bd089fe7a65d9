"""SatImp: gradient ascent with token weights for saturation (not yet forgotten) and importance (not certain)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, check_number
from llm_forget.scores import AnswerScores, mean_over_answer


def satimp_loss(token_logps: Tensor, mask: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """Mean over answer tokens of ``p_t^β₁ (1 − p_t)^β₂ · log p_t``; the weights are detached.

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.
        beta1: β₁ ≥ 0, saturation: tokens that are already forgotten get no weight.
        beta2: β₂ ≥ 0, importance: tokens that are certain get no weight.

    Returns:
        (B,) ≤ 0, bounded below if β₁ > 0. One token of probability 1/2 with β₁ = β₂ = 1 gives −¼ ln 2 ≈ −0.1733. β₂ = 0 is
        WGA; β₁ = β₂ = 0 is gradient ascent.

    Source: Yang et al. 2025, arXiv:2505.11953.
    """
    logps = token_logps.detach()
    certain = (-logps.expm1()).clamp(min=0)  # 1 − p, accurate for p near 1
    weights = (beta1 * logps).exp() * certain**beta2
    return mean_over_answer(weights * token_logps, mask)


@dataclass(frozen=True)
class SatImp(Method):
    """SatImp with a retain term.

    Attributes:
        beta1: β₁ ≥ 0; 5 in OpenUnlearning's configuration, with forget weight 0.1 and retain weight 1.
        beta2: β₂ ≥ 0; 1 in OpenUnlearning's configuration.
    """

    beta1: float = 5.0
    beta2: float = 1.0

    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Yang et al. 2025, arXiv:2505.11953"

    def __post_init__(self) -> None:
        check_number("satimp", "beta1", self.beta1, at_least=0)
        check_number("satimp", "beta2", self.beta2, at_least=0)

    @property
    def bounded(self) -> bool:
        """Without saturation weights the loss has no lower bound."""
        return self.beta1 > 0

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) weighted mean log-probability of each forget answer."""
        return satimp_loss(forget.token_logps, forget.mask, beta1=self.beta1, beta2=self.beta2)
