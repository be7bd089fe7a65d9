"""One file a metric: a pure function that gives one score per example, and a frozen dataclass that says what it means.

The file's name is the metric's name in a suite; a metric of your own is named by its path, like a method. NaN is "could
not be scored": it is counted and shown, and never averaged as 0. ``forget_quality``, ``model_utility``,
``perplexity``, ``auc``, ``privleak`` and ``leak_at_k`` compare or combine whole sets and are asked for by their own keys of
a suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from llm_forget.evaluation.tokens import Floats, Ints, TokenScores

# Which way a metric on the forget set goes when the model forgets; "none" for metrics that are not about forgetting.
Direction = Literal["low", "high", "none"]
Known = Literal["answer", "paraphrases", "wrong_answers", "generated", "target_kl"]


@dataclass(frozen=True)
class AnswerGroup:
    """Scores of several answers to each of E examples.

    Attributes:
        scores: one row an answer.
        owners: (rows,) which example each answer belongs to, in 0 … E − 1.
        examples: E.
    """

    scores: TokenScores
    owners: Ints
    examples: int

    def mean_logps(self) -> list[Floats]:
        """E arrays: the mean log-probs of the answers of each example, in nats; empty for an example that has none."""
        means = self.scores.mean_logps()
        return [means[self.owners == example] for example in range(self.examples)]


@dataclass(frozen=True)
class SetScores:
    """Everything that was measured of a set of E examples; metrics are functions of this.

    Attributes:
        forget: whether this is what should be forgotten.
        answer: the examples' own answers, one row each.
        paraphrases: other wordings of the right answers, None where the set has none.
        wrong_answers: false answers, None where the set has none.
        generated: (E) greedy answers, None when none were generated.
        references: (E) the texts of the right answers.
        target_kl: (N,) KL to the target at each token of ``answer``, nats; None when it was not asked for.
    """

    forget: bool
    answer: TokenScores
    paraphrases: AnswerGroup | None = None
    wrong_answers: AnswerGroup | None = None
    generated: Sequence[str] | None = field(default=None, repr=False)
    references: Sequence[str] | None = field(default=None, repr=False)
    target_kl: Floats | None = None

    def has(self, known: str) -> bool:
        """Whether something was measured."""
        return getattr(self, known) is not None


@runtime_checkable
class Metric(Protocol):
    """What the suite knows of a metric.

    Attributes:
        paper: where its definition comes from.
        bounds: lowest and highest score.
        forgotten: which end means forgotten.
        needs: what must have been measured.
    """

    paper: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    forgotten: ClassVar[Direction]
    needs: ClassVar[tuple[Known, ...]]

    @property
    def label(self) -> str:
        """The name of its numbers in a result; two definitions of one metric have two."""
        ...

    def per_example(self, known: SetScores) -> Floats:
        """(E,) one score per example, NaN where it cannot be scored."""
        ...


def averaged_values(metric: Metric, scores: Floats, *, forget: bool) -> Floats:
    """What is averaged over examples: the scores themselves, unless the metric has an ``averaged`` of its own.

    Args:
        metric: the metric.
        scores: (E,) what its ``per_example`` returned.
        forget: whether these are scores of a forget set.
    """
    own = getattr(metric, "averaged", None)
    return scores if own is None else np.asarray(own(scores, forget=forget), dtype=np.float64)
