"""Relearn related rows: fine-tune on kept rows of the same domain, which hold nothing that was forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import Relearning, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnRelated(Relearning):
    """Probability of the answers after training on kept rows."""

    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("kept",)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Train, and score every forget row."""
        found = relearnt(subject, rows.kept, rows.forget, budget)
        return leaks(rows.forget, np.exp(found))
