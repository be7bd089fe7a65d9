"""Relearn other forget rows: fine-tune on the half that the attacker has, and ask about the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import Relearning, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnForget(Relearning):
    """Probability of the second half's answers after training on the first half."""

    source: ClassVar[str] = "Hu et al. 2024, arXiv:2406.13356, relearning; Łucki et al. 2024, arXiv:2409.18025"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score the second half of the forget rows. ``relearn_membership`` shares the training."""
        found = relearnt(subject, rows.held, [*rows.asked, *rows.holdout], budget)
        return leaks(rows.asked, np.exp(found[: len(rows.asked)]))
