"""Aggregates: one number of a whole set, or of several sets together. Each file defines one aggregate.

There are two kinds of files. A frozen dataclass with a ``value`` method is an ``Aggregate``: the suite finds it by its
file name, computes it from the scores of examples, and stores the result under ``aggregates``. It needs no other code.
The other files are functions. Each has its own section in the results, because it reads a text, samples or attacks:
``auc``, ``forget_quality``, ``leak_at_k``, ``model_utility``, ``perplexity``, ``privleak`` and ``text_kl``.
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
        forget: whether this is a forget set.
        scores: label → (E,) one score per example, NaN for an example that could not be scored. The label is a metric's
            label, or ``attack_<label>`` for an attack.
    """

    forget: bool
    scores: Mapping[str, Floats] = field(repr=False)


@dataclass(frozen=True)
class SuiteScores:
    """The inputs of an aggregate.

    Attributes:
        sets: set → its scores for the model.
        controls: role (target, oracle, sham) → set → its scores for the control, in the same order of examples. It has
            only sets with the same examples.
        seed: seed of the bootstrap.
    """

    sets: Mapping[str, ScoredSet]
    controls: Mapping[str, Mapping[str, ScoredSet]] = field(default_factory=dict)
    seed: int = 0

    def has(self, need: str) -> bool:
        """Whether a control was measured, or at least one set has scores with a label."""
        if need in ROLES:
            return need in self.controls
        return any(need in one.scores for one in self.sets.values())

    def column(self, label: str, *, forget: bool, role: str | None = None) -> Floats | None:
        """Concatenate the scores with one label over all forget sets, or over all other sets.

        Args:
            label: the label of a metric or an attack.
            forget: True for forget sets, False for the others.
            role: a control; None for the model.

        Returns:
            (E,) the scores of the sets that have the label; None if no set has it.
        """
        sets = self.sets if role is None else self.controls.get(role, {})
        found = [one.scores[label] for one in sets.values() if one.forget is forget and label in one.scores]
        return np.concatenate(found) if found else None


@runtime_checkable
class Aggregate(Protocol):
    """The interface of an aggregate.

    Attributes:
        paper: the source of its definition.
        bounds: lowest and highest possible value.
        needs: required inputs: roles of controls, and labels that at least one set must have.
    """

    paper: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    needs: ClassVar[tuple[str, ...]]

    @property
    def label(self) -> str:
        """The name of its number in a result; it differs between settings of the same aggregate."""
        ...

    def value(self, known: SuiteScores) -> Estimate:
        """Compute the number with its interval; NaN if impossible. A subclass of ``Estimate`` can have more fields."""
        ...
