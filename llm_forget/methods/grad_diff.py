"""Gradient difference: gradient ascent on the forget answers, gradient descent on the retain answers.

The forget loss is ``grad_ascent_loss``; the retain loss is the retain term, ``nll`` by default. If the model knows both sets
equally well, the two losses almost cancel at the start. Both are logged.

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
    """Gradient ascent with a retain term. The range between too little forgetting and collapse is narrow; use the stop rule."""

    default_retain: ClassVar[str | None] = "nll"
    bounded: ClassVar[bool] = False
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2203.12817; TOFU, arXiv:2401.06121"

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean log-probability of each forget answer."""
        return grad_ascent_loss(forget.token_logps, forget.mask)
