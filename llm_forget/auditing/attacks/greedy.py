"""Ask the question as it is, and take the most likely answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.words import told

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class Greedy(Attack):
    """Share of the answer's words in the greedy answer."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.CHAT
    quick: ClassVar[bool] = True

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        said = subject.ask(rows.forget, max_new_tokens=budget.max_new_tokens)
        return leaks(rows.forget, told(rows.forget, said))
