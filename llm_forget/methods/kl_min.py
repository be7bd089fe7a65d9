"""KL minimisation: gradient ascent on the forget answers, KL divergence to the reference on the retain answers.

The forget loss is ``grad_ascent_loss``. It differs from gradient difference in its retain term ``kl``, which keeps the whole
distribution and not only the tokens of the data. That costs a reference forward in every step.

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
    """Gradient ascent with KL(π₀ ‖ π) as the retain term (arXiv:2401.06121)."""

    default_retain: ClassVar[str | None] = "kl"
    bounded: ClassVar[bool] = False
    paper: ClassVar[str] = "TOFU, arXiv:2401.06121"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean log-probability of each forget answer."""
        return grad_ascent_loss(forget.token_logps, forget.mask)
