"""KL minimisation: gradient ascent on the forget answers, held to the reference on the retain answers.

The forget half is gradient ascent's loss; what distinguishes it from gradient difference is its retain term, ``kl``: the whole
distribution is kept, not only the data's own words, at the cost of a reference forward every step.

Source: TOFU, arXiv:2401.06121, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method
from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class KLMin(Method):
    """Gradient ascent with KL(π₀ ‖ π) as its retain term (arXiv:2401.06121)."""

    default_retain: ClassVar[str | None] = "kl"
    bounded: ClassVar[bool] = False
    paper: ClassVar[str] = "TOFU, arXiv:2401.06121"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean log-probability of each forget answer."""
        return grad_ascent_loss(forget.token_logps, forget.mask)
