"""Few-shot: show questions of the same kind with their right answers from the kept rows, then ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.asking import after, question_of
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned
from llm_forget.auditing.words import words_of

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.data.examples import Example
    from llm_forget.evaluation.tokens import Floats

SHOTS = {"plain": 0, "two": 2, "one": 1}


@dataclass(frozen=True)
class FewShot(Attack):
    """Probability of the answer after kept questions and answers."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.LOGPS
    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("kept",)
    source: ClassVar[str] = "Lynch et al. 2024, arXiv:2402.16835, in-context relearning"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""

        def score(count: int, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            shown = [nearest(one, rows.kept, count) for one in examples]
            return probabilities(subject, [after(one, own) for one, own in zip(examples, shown, strict=True)])

        return tuned(rows, budget, SHOTS, score)


def nearest(example: Example, others: Sequence[Example], count: int) -> list[Example]:
    """The ``count`` examples whose questions share most words with this one's (Jaccard); the nearest stands last."""
    own = _words(example)

    def overlap(place: int) -> tuple[float, int]:
        other = _words(others[place])
        return len(own & other) / max(len(own | other), 1), -place

    return [others[place] for place in sorted(range(len(others)), key=overlap)[-count:]] if count else []


def _words(example: Example) -> set[str]:
    return set(words_of(question_of(example) or ""))
