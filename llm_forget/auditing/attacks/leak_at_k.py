"""Leak@k: sample several answers to each question, and keep the one that tells most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.words import most_told

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class LeakAtK(Attack):
    """Share of the answer's words in the best of ``budget.samples`` sampled answers, at temperature 1."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.CHAT
    source: ClassVar[str] = "Chen et al. 2021, arXiv:2107.03374, pass@k; leak@k of LLM unlearning"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score the second half of the forget rows, because sampling is slow."""
        said = subject.sample(
            rows.asked, samples=budget.samples, max_new_tokens=budget.max_new_tokens, seed=budget.seed
        )
        return leaks(rows.asked, most_told(rows.asked, said))
