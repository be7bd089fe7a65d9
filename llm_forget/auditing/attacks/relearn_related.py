"""Relearn related rows: fine-tune on kept rows of the same domain, which hold nothing that was forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import not_trained, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnRelated(Attack):
    """Probability of the answers after training on kept rows."""

    group: ClassVar[Group] = "training"
    needs: ClassVar[Access] = Access.WEIGHTS
    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("kept",)
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Hu et al. 2024, arXiv:2406.13356, relearning"

    def refuses(self, form: Form) -> str:
        """Only merged weights are trained."""
        return not_trained(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score every forget row."""
        found = relearnt(subject, rows.kept, rows.forget, budget)
        return leaks(rows.forget, np.exp(found))
