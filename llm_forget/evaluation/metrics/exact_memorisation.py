"""Exact memorisation: the share of answer tokens that the model predicts correctly, given the tokens before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, TokenScores


def exact_memorisation(scores: TokenScores) -> Floats:
    """Share of answer tokens that are the arg-max of the vocabulary, with teacher forcing.

    Args:
        scores: one row per answer.

    Returns:
        (E,) in [0, 1]; NaN for a row without tokens or with a NaN log-prob, whose arg-max has no meaning. For hits
        1, 0, 1, 1 it is ¾.

    Source: Tirumala et al. 2022, arXiv:2205.10770, section 2.
    """
    means = scores.row_means(scores.hits)
    return np.where(np.isnan(scores.mean_logps()), np.nan, means)


@dataclass(frozen=True)
class ExactMemorisation:
    """Share of answer tokens that are the model's top prediction."""

    paper: ClassVar[str] = "Tirumala et al. 2022, arXiv:2205.10770"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "exact_memorisation"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) share for each answer."""
        return exact_memorisation(known.answer)
