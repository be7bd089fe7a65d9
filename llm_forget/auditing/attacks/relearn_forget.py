"""Relearn other forget rows: fine-tune on the half that the attacker has, and ask about the other half."""

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
class RelearnForget(Attack):
    """Probability of the second half's answers after training on the first half."""

    group: ClassVar[Group] = "training"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Hu et al. 2024, arXiv:2406.13356, relearning; Łucki et al. 2024, arXiv:2409.18025"

    def refuses(self, form: Form) -> str:
        """Only merged weights are trained."""
        return not_trained(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score the second half of the forget rows. ``relearn_membership`` shares the training."""
        found = relearnt(subject, rows.held, [*rows.asked, *rows.holdout], budget)
        return leaks(rows.asked, np.exp(found[: len(rows.asked)]))
