"""PDU's forget loss: flatten the logits of the forget answers; the `dual` wrapper sets the retain weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def logit_margin_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``(max_v z_v − mean_v z_v)²``. Without a softmax it neither saturates nor overflows.

    Args:
        logits: (B, A, V) the policy's logits.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) ≥ 0, and 0 only if the distribution is uniform. Logits (3, 0, 0) give (3 − 1)² = 4.

    Source: Entesari et al. 2025, arXiv:2506.05314, logit-margin flattening.
    """
    return mean_over_answer((logits.amax(-1) - logits.mean(-1)).square(), mask)


@dataclass(frozen=True)
class PDU(Method):
    """Logit-margin flattening with a retain term (arXiv:2506.05314). The paper's full method adds the wrapper ``dual``."""

    needs: ClassVar[Needs] = Needs(logits=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Entesari et al. 2025, arXiv:2506.05314"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) flattening loss of each forget answer."""
        return logit_margin_loss(needed(forget.logits, "pdu", "the policy's logits"), forget.mask)
