"""Adapter off: switch the adapter off, as anybody can who holds the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.adapters import no_adapter
from llm_forget.auditing.tools.probing import probabilities

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class AdapterOff(Attack):
    """Probability of the answer without the adapter. Target and oracle have none and are asked as they are."""

    group: ClassVar[Group] = "weights"
    needs: ClassVar[Access] = Access.WEIGHTS
    quick: ClassVar[bool] = True
    changes_model: ClassVar[bool] = True

    def refuses(self, form: Form) -> str:
        """Merged weights have no adapter."""
        return no_adapter(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        if not subject.adapted:
            return leaks(rows.forget, probabilities(subject, rows.forget))
        with subject.changed(weights=False) as model, model.disable_adapter():
            return leaks(rows.forget, probabilities(subject, rows.forget))
