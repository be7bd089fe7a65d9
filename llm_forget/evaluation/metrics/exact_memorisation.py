"""Exact memorisation: the share of answer tokens that the model would write by itself, given those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, TokenScores


def exact_memorisation(scores: TokenScores) -> Floats:
    """Share of answer tokens that are the arg-max of the vocabulary, teacher-forced.

    Args:
        scores: one row an answer.

    Returns:
        (E,) in [0, 1]; NaN for a row without tokens or with a log-prob that is NaN, whose arg-max means nothing. With
        hits 1, 0, 1, 1 it is ¾.

    Source: Tirumala et al. 2022, arXiv:2205.10770, section 2.
    """
    means = scores.row_means(scores.hits)
    return np.where(np.isnan(scores.mean_logps()), np.nan, means)


@dataclass(frozen=True)
class ExactMemorisation:
    """Share of answer tokens predicted first."""

    paper: ClassVar[str] = "Tirumala et al. 2022, arXiv:2205.10770"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "exact_memorisation"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) share of each answer."""
        return exact_memorisation(known.answer)
