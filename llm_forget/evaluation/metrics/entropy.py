"""Entropy of the model's distribution at the answer tokens. A broken model has a very high or a very low entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, TokenScores


def entropy(scores: TokenScores) -> Floats:
    """Average ``H = −Σ p(v) log p(v)`` over the answer tokens, in nats.

    Args:
        scores: one row per answer; ``vocab_mean`` is −H at each position.

    Returns:
        (E,) in [0, log V]; NaN for a row without tokens. For p = (½, ½) and (1, 0) it is ½ ln 2 = 0.347.
    """
    # for a distribution on a single token, rounding can give −0 or a value slightly below 0
    return (-scores.row_means(scores.vocab_mean)).clip(min=0.0)


@dataclass(frozen=True)
class Entropy:
    """Mean vocabulary entropy at the tokens of the right answers."""

    paper: ClassVar[str] = "Shannon 1948, A mathematical theory of communication"
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "entropy"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) mean entropy of each answer."""
        return entropy(known.answer)
