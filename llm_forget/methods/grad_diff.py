"""Gradient difference: ascend on the forget answers, descend on the retain answers.

The forget half is gradient ascent's loss; the retain half is the recipe's retain term, ``nll`` unless it says otherwise. On two
sets that the model knows equally well the halves start close to cancelling, so both are logged.

Source: Liu, Liu and Stone 2022, arXiv:2203.12817; as a baseline in TOFU, arXiv:2401.06121, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method
from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class GradDiff(Method):
    """Gradient ascent with a retain term; the window between too little and collapse is narrow, so the stop rule finds it."""

    default_retain: ClassVar[str | None] = "nll"
    bounded: ClassVar[bool] = False
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2203.12817; TOFU, arXiv:2401.06121"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean log-probability of each forget answer."""
        return grad_ascent_loss(forget.token_logps, forget.mask)
