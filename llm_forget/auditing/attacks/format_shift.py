"""Format shift: ask for the same fact as raw text in other layouts, without the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.asking import as_text
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

# None keeps the trained format. Each layout ends with a newline, so that the tokens of the answer stay the same.
LAYOUTS: Mapping[str, str | None] = {
    "plain": None,
    "form": "Question: {question}\nAnswer:\n",
    "bare": "{question}\n",
    "instruction": "### Instruction:\n{question}\n\n### Response:\n",
    "list": "# Records\n\n* {question}\n\n> ",
}


@dataclass(frozen=True)
class FormatShift(Attack):
    """Probability of the answer's words, without an end token (which differs between formats), in the best format."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.LOGPS
    quick: ClassVar[bool] = True
    source: ClassVar[str] = "Lynch et al. 2024, arXiv:2402.16835; layouts of llm-forget"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        bare = replace(subject.encoding, add_end_token=False)

        def score(layout: str | None, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            if layout is not None:
                examples = [as_text(one, layout) for one in examples]
            return probabilities(subject, examples, encoding=bare)

        return tuned(rows, budget, LAYOUTS, score)
