"""Normalised probability: the right answer's share of the probability of all given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats


def normalised_probability(mean_logps: npt.ArrayLike, wrong_mean_logps: Sequence[npt.ArrayLike]) -> Floats:
    """Compute ``p / (p + Σ p_wrong)`` with length-normalised p, in the log domain to avoid 0 / 0.

    Args:
        mean_logps: (E,) mean log-prob of the right answer, in nats.
        wrong_mean_logps: E arrays with the mean log-probs of each example's wrong answers.

    Returns:
        (E,) in [0, 1]; NaN if a log-prob is NaN, there is no wrong answer, or all log-probs are −∞. For p = 0.2 and wrong
        answers with 0.1 and 0.1 it is ½.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.1 (real authors and world facts).
    """
    found = []
    for right, wrong in zip(as_floats(mean_logps), wrong_mean_logps, strict=True):
        wrong = as_floats(wrong)
        with np.errstate(invalid="ignore"):  # NaN must propagate
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
        """(E,) share for each right answer."""
        if known.wrong_answers is None:
            return np.full(len(known.answer), np.nan)
        return normalised_probability(known.answer.mean_logps(), known.wrong_answers.mean_logps())
