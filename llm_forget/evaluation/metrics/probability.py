"""Probability: the model's length-normalised probability of the right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats


def probability(mean_logps: npt.ArrayLike) -> Floats:
    """Compute the length-normalised probability ``exp(mean log p)``, the geometric mean of the token probabilities.

    Args:
        mean_logps: (E,) mean log-prob over the answer tokens, including the end token, in nats.

    Returns:
        (E,) in [0, 1]; NaN stays NaN. For token probabilities ½ and ⅛ it is ¼.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.1 (there written as a power 1/|a|).
    """
    return np.exp(as_floats(mean_logps))


@dataclass(frozen=True)
class Probability:
    """Length-normalised probability of the answer."""

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "probability"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) probability of each answer."""
        return probability(known.answer.mean_logps())
