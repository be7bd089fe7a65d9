"""Normalised probability: the right answer's share among the answers that were offered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats


def normalised_probability(mean_logps: npt.ArrayLike, wrong_mean_logps: Sequence[npt.ArrayLike]) -> Floats:
    """``p / (p + Σ p_wrong)`` with length-normalised p, computed in the log domain so that 0 / 0 cannot happen.

    Args:
        mean_logps: (E,) mean log-prob of the right answer, nats.
        wrong_mean_logps: E arrays with those of the wrong answers, as many as each example has.

    Returns:
        (E,) in [0, 1]; NaN where a log-prob is NaN, no wrong answer is there, or all are −∞. With p = 0.2 and wrong
        answers at 0.1 and 0.1 it is ½.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.1 (real authors and world facts).
    """
    found = []
    for right, wrong in zip(as_floats(mean_logps), wrong_mean_logps, strict=True):
        wrong = as_floats(wrong)
        with np.errstate(invalid="ignore"):  # NaN goes through, which is what is wanted
            total = np.logaddexp.reduce([right, *wrong]) if len(wrong) else np.nan
        found.append(np.exp(right - total) if np.isfinite(total) else np.nan)
    return as_floats(found)


@dataclass(frozen=True)
class NormalisedProbability:
    """Probability of the right answer among right and wrong ones."""

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("answer", "wrong_answers")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "normalised_probability"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) share of each right answer."""
        if known.wrong_answers is None:
            return np.full(len(known.answer), np.nan)
        return normalised_probability(known.answer.mean_logps(), known.wrong_answers.mean_logps())
