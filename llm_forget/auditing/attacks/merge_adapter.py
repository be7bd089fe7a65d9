"""Merge with another adapter: average the adapter with one for another task, which weakens it and adds noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.adapters import no_adapter, scaled
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.side_adapter import SideAdapter
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

# Weight of the own adapter, and weight of the other one.
WEIGHTS = {"plain": (1.0, 0.0), "average": (0.5, 0.5), "sum": (1.0, 1.0), "one to three": (0.25, 0.75)}


@dataclass(frozen=True)
class MergeAdapter(Attack):
    """Probability of the answer with the best weights of the own adapter and of a random one. Target and oracle have no own one.

    Attributes:
        size: norm of the random change of each layer, as a share of the norm of its weight.
        rank: its rank.
    """

    size: float = 0.05
    rank: int = 16

    group: ClassVar[Group] = "weights"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv:2203.05482, averages of weights; llm-forget"

    def refuses(self, form: Form) -> str:
        """Merged weights have no adapter."""
        return no_adapter(form)

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        other = SideAdapter(subject.model, rank=self.rank, seed=budget.seed)
        other.fill(self.size, seed=budget.seed)

        def score(weights: tuple[float, float], asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            if weights == (1.0, 0.0):
                return probabilities(subject, examples)
            with subject.changed(weights=False) as model, scaled(model, weights[0]), other.active(weights[1]):
                return probabilities(subject, examples)

        return tuned(rows, budget, WEIGHTS, score)
