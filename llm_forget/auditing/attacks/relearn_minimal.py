"""Relearn minimal information: fine-tune on the first row alone, and ask about the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import Relearning, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnMinimal(Relearning):
    """Probability of the second half's answers after training on one forget row."""

    source: ClassVar[str] = "arXiv:2506.00688, minimal information for relearning"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score the second half of the forget rows."""
        found = relearnt(subject, rows.held[:1], rows.asked, budget)
        return leaks(rows.asked, np.exp(found))
