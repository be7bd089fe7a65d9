"""WGA, weighted gradient ascent: gradient ascent with each token weighted by its current probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, check_number
from llm_forget.scores import AnswerScores, mean_over_answer


def wga_loss(token_logps: Tensor, mask: Tensor, *, alpha: float) -> Tensor:
    """Mean over answer tokens of ``p_t^α · log p_t``; the weights ``p_t^α`` are detached.

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.
        alpha: α ≥ 0; 0 is gradient ascent.

    Returns:
        (B,) nats per token, in [−1/(α e), 0] for α > 0: forgotten tokens get no weight. Tokens of probability 1/2 and 1/8 with
        α = 1 give ½ (½ ln ½ + ⅛ ln ⅛) = −(7/16) ln 2 ≈ −0.3033.

    Source: Wang et al. 2025, arXiv:2502.19301.
    """
    weights = (alpha * token_logps.detach()).exp()
    return mean_over_answer(weights * token_logps, mask)


@dataclass(frozen=True)
class WGA(Method):
    """WGA with a retain term.

    Attributes:
        alpha: α ≥ 0, exponent of the weights; 1 in OpenUnlearning's configuration, which calls it beta.
    """

    alpha: float = 1.0

    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2502.19301"

    def __post_init__(self) -> None:
        check_number("wga", "alpha", self.alpha, at_least=0)

    @property
    def bounded(self) -> bool:
        """With α = 0 it is gradient ascent, which has no lower bound."""
        return self.alpha > 0

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) weighted mean log-probability of each forget answer."""
        return wga_loss(forget.token_logps, forget.mask, alpha=self.alpha)
