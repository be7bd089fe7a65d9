"""Scale the adapter: serve it at another strength, also a negative one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.adapters import no_adapter, scaled
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

# Multiples of the adapter; 0, which is no adapter at all, is another attack.
STRENGTHS = {"plain": 1.0, "half": 0.5, "minus one": -1.0, "double": 2.0, "quarter": 0.25, "minus half": -0.5}


@dataclass(frozen=True)
class ScaleAdapter(Attack):
    """Probability of the answer at the best strength. Target and oracle have no adapter and are asked as they are."""

    group: ClassVar[Group] = "weights"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True

    def refuses(self, form: Form) -> str:
        """Merged weights have no adapter."""
        return no_adapter(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""

        def score(strength: float, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            if strength == 1 or not subject.adapted:
                return probabilities(subject, examples)
            with subject.changed(weights=False) as model, scaled(model, strength):
                return probabilities(subject, examples)

        return tuned(rows, budget, STRENGTHS, score)
