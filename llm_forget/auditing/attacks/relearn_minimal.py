"""Relearn minimal information: fine-tune on the first row alone, and ask about the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import not_trained, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnMinimal(Attack):
    """Probability of the second half's answers after training on one forget row."""

    group: ClassVar[Group] = "training"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv:2506.00688, minimal information for relearning"

    def refuses(self, form: Form) -> str:
        """Only merged weights are trained."""
        return not_trained(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score the second half of the forget rows."""
        found = relearnt(subject, rows.held[:1], rows.asked, budget)
        return leaks(rows.asked, np.exp(found))
