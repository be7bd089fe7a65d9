"""Relearn and compare: fine-tune on half of the forgotten rows, and tell the other half from rows that no model saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.auditing.tools.relearning import Relearning, relearnt

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class RelearnMembership(Relearning):
    """Mean log-prob of the second half's answers after training on the first half, against that of holdout rows."""

    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("holdout",)
    source: ClassVar[str] = (
        "Hu et al. 2024, arXiv:2406.13356, relearning; Yeom et al. 2018, arXiv:1709.01604, loss attack"
    )

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score the second half of the forget rows, with the training of ``relearn_forget``."""
        found = relearnt(subject, rows.held, [*rows.asked, *rows.holdout], budget)
        return leaks(rows.asked, found[: len(rows.asked)], found[len(rows.asked) :])
