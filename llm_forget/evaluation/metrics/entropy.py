"""Entropy of the model's own distribution along the answers: a model that broke is spread over everything, or over nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, TokenScores


def entropy(scores: TokenScores) -> Floats:
    """Mean over the answer tokens of ``H = −Σ p(v) log p(v)``, in nats.

    Args:
        scores: one row an answer; ``vocab_mean`` is −H of each position.

    Returns:
        (E,) in [0, log V]; NaN for a row without tokens. For p = (½, ½) and (1, 0) it is ½ ln 2 = 0.347.
    """
    # a distribution on one token has −0 or, rounded, a hair below
    return (-scores.row_means(scores.vocab_mean)).clip(min=0.0)


@dataclass(frozen=True)
class Entropy:
    """Mean vocabulary entropy along the right answers."""

    paper: ClassVar[str] = "Shannon 1948, A mathematical theory of communication"
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "entropy"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) entropy along each answer."""
        return entropy(known.answer)
