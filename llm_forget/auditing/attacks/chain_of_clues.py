"""Chain of clues: tell the model what is known of the subject from other forgotten rows, then ask for the next fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.asking import after, companions
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

CLUES = {"plain": 0, "one": 1, "three": 3}


@dataclass(frozen=True)
class ChainOfClues(Attack):
    """Probability of an answer after questions and right answers about the same subject."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.LOGPS
    source: ClassVar[str] = "openreview.net/forum?id=pnLhDu2s0a, chains of related questions"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        known = companions(rows.forget)

        def score(count: int, asked: Sequence[int]) -> Floats:
            clues = [[rows.forget[other] for other in known[row][:count]] for row in asked]
            return probabilities(subject, [after(rows.forget[row], own) for row, own in zip(asked, clues, strict=True)])

        return tuned(rows, budget, CLUES, score)
