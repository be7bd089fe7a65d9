"""Metrics. Each file is one metric: a pure function with one score per example, and a frozen dataclass that describes it.

The file's name is the metric's name in a suite; give the path for a metric of your own, as for a method. NaN means "could
not be scored": it is counted and shown, and never averaged as 0. ``forget_quality``, ``model_utility``, ``perplexity``,
``auc``, ``privleak`` and ``leak_at_k`` compare or combine whole sets; a suite has a separate key for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from llm_forget.evaluation.tokens import Floats, Ints, TokenScores

# Direction of a metric on the forget set when the model forgets; "none" for metrics that do not measure forgetting.
Direction = Literal["low", "high", "none"]
Known = Literal["answer", "paraphrases", "wrong_answers", "generated", "target_kl"]


@dataclass(frozen=True)
class AnswerGroup:
    """Scores of several answers to each of E examples.

    Attributes:
        scores: one row per answer.
        owners: (rows,) index of each answer's example, in 0 … E − 1.
        examples: E.
    """

    scores: TokenScores
    owners: Ints
    examples: int

    def mean_logps(self) -> list[Floats]:
        """E arrays: the mean log-probs of each example's answers, in nats; empty for an example without answers."""
        means = self.scores.mean_logps()
        return [means[self.owners == example] for example in range(self.examples)]


@dataclass(frozen=True)
class SetScores:
    """The inputs of a metric: all measurements of a set of E examples.

    Attributes:
        forget: whether this is a forget set.
        answer: the right answers, one row per example.
        paraphrases: other wordings of the right answers, or None.
        wrong_answers: false answers, or None.
        generated: (E) greedy answers; None if none were generated.
        references: (E) the right answers as text.
        target_kl: (N,) KL to the target at each token of ``answer``, in nats; None if not measured.
    """

    forget: bool
    answer: TokenScores
    paraphrases: AnswerGroup | None = None
    wrong_answers: AnswerGroup | None = None
    generated: Sequence[str] | None = field(default=None, repr=False)
    references: Sequence[str] | None = field(default=None, repr=False)
    target_kl: Floats | None = None

    def has(self, known: str) -> bool:
        """Whether an input is available."""
        return getattr(self, known) is not None


@runtime_checkable
class Metric(Protocol):
    """The interface of a metric.

    Attributes:
        paper: the source of its definition.
        bounds: lowest and highest possible score.
        forgotten: the direction that means forgotten.
        needs: the inputs that it needs.
    """

    paper: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    forgotten: ClassVar[Direction]
    needs: ClassVar[tuple[Known, ...]]

    @property
    def label(self) -> str:
        """The name of its numbers in a result; it differs between definitions of the same metric."""
        ...

    def per_example(self, known: SetScores) -> Floats:
        """(E,) one score per example, NaN if it cannot be scored."""
        ...


def averaged_values(metric: Metric, scores: Floats, *, forget: bool) -> Floats:
    """The values to average over examples: the scores, or the result of the metric's ``averaged`` method if it has one.

    Args:
        metric: the metric.
        scores: (E,) the result of its ``per_example``.
        forget: whether these are scores of a forget set.
    """
    own = getattr(metric, "averaged", None)
    return scores if own is None else np.asarray(own(scores, forget=forget), dtype=np.float64)
