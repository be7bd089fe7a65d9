"""One file an aggregate: one number of a whole set, or of several sets together.

There are two kinds of files. A frozen dataclass with a ``value`` method is an ``Aggregate``: the suite finds it by its
file name, computes it from the scores of examples, and puts the result under ``aggregates``. Nothing else needs a line
for it. The other files are functions behind a section of its own in the results, because they read a text, samples or
attacks: ``auc``, ``forget_quality``, ``leak_at_k``, ``model_utility``, ``perplexity``, ``privleak`` and ``text_kl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from llm_forget.evaluation.aggregate import Estimate
from llm_forget.evaluation.tokens import Floats

ROLES = ("target", "oracle", "sham")


@dataclass(frozen=True)
class ScoredSet:
    """The scores of one set of E examples.

    Attributes:
        forget: whether this is what should be forgotten.
        scores: label → (E,) one score per example, NaN for an example that could not be scored. Labels are those of
            metrics, and ``attack_<label>`` for attacks.
    """

    forget: bool
    scores: Mapping[str, Floats] = field(repr=False)


@dataclass(frozen=True)
class SuiteScores:
    """Everything that an aggregate may know.

    Attributes:
        sets: set → its scores under the model.
        controls: role (target, oracle, sham) → set → its scores under that model, in the same order of examples. Only
            sets of the same examples are here.
        seed: of the bootstrap.
    """

    sets: Mapping[str, ScoredSet]
    controls: Mapping[str, Mapping[str, ScoredSet]] = field(default_factory=dict)
    seed: int = 0

    def has(self, need: str) -> bool:
        """Whether a control was measured, or some set has scores of a label."""
        if need in ROLES:
            return need in self.controls
        return any(need in one.scores for one in self.sets.values())

    def column(self, label: str, *, forget: bool, role: str | None = None) -> Floats | None:
        """The scores of one label over all forget sets, or over all other sets.

        Args:
            label: of a metric or an attack.
            forget: which sets.
            role: of a control; None for the model.

        Returns:
            (E,) the scores of the sets that have the label, one set after the other; None if no set has it.
        """
        sets = self.sets if role is None else self.controls.get(role, {})
        found = [one.scores[label] for one in sets.values() if one.forget is forget and label in one.scores]
        return np.concatenate(found) if found else None


@runtime_checkable
class Aggregate(Protocol):
    """What the suite knows of an aggregate.

    Attributes:
        paper: where its definition comes from.
        bounds: lowest and highest value.
        needs: what must be known: roles of controls, and labels of scores that at least one set must have.
    """

    paper: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    needs: ClassVar[tuple[str, ...]]

    @property
    def label(self) -> str:
        """The name of its number in a result; the same aggregate with other settings has another."""
        ...

    def value(self, known: SuiteScores) -> Estimate:
        """The number with its interval; NaN if it cannot be computed. It may be of a subclass with more fields."""
        ...
