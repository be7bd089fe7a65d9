"""Truth ratio: the probability of false answers divided by the probability of a paraphrased true answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats

Definition = Literal["arithmetic", "geometric"]
# The exponential of a larger number overflows. Clipping does not matter for ratios so far from 1.
_LARGEST_LOG = 700.0


def truth_ratio(
    right_mean_logps: Sequence[npt.ArrayLike], wrong_mean_logps: Sequence[npt.ArrayLike], *, definition: Definition
) -> Floats:
    """Compute ``R = P(wrong) / P(right)`` with length-normalised probabilities p = exp(mean log-prob).

    ``arithmetic``: P is the mean of p over an example's answers (the TOFU authors' code).
    ``geometric``: P is the exponential of the mean of log p (later toolkits). The two are different quantities; do not
    compare one with the other.

    Args:
        right_mean_logps: E arrays with the mean log-probs of the paraphrased right answers, in nats.
        wrong_mean_logps: E arrays with the mean log-probs of the wrong answers, in nats.
        definition: ``arithmetic`` or ``geometric``.

    Returns:
        (E,) in [0, ∞), clipped to e^±700; NaN if a log-prob is NaN, an example has no right or no wrong answer, or both
        means are −∞. For a right answer with 0.2 and wrong answers with 0.1 and 0.4 it is 0.25 / 0.2 = 1.25 (arithmetic) or
        √0.04 / 0.2 = 1 (geometric).

    Source: Maini et al. 2024, arXiv:2401.06121, equation 1.
    """
    found = []
    for right, wrong in zip(right_mean_logps, wrong_mean_logps, strict=True):
        with np.errstate(invalid="ignore"):  # −∞ − (−∞) gives NaN, which is intended for two impossible answers
            found.append(_log_mean(as_floats(wrong), definition) - _log_mean(as_floats(right), definition))
    return np.exp(np.clip(as_floats(found), -_LARGEST_LOG, _LARGEST_LOG))


def _log_mean(logps: Floats, definition: Definition) -> float:
    """Log of the mean probability of several answers; NaN without answers."""
    if len(logps) == 0 or np.isnan(logps).any():
        return float("nan")
    if definition == "geometric":
        return float(logps.mean())
    return float(np.logaddexp.reduce(logps) - np.log(len(logps)))


def forget_truth_ratio(ratios: npt.ArrayLike) -> Floats:
    """(E,) ``min(R, 1/R)`` in [0, 1]: near 1 if the model prefers neither true nor false answers."""
    with np.errstate(divide="ignore"):
        return np.exp(-np.abs(np.log(as_floats(ratios))))


def kept_truth_ratio(ratios: npt.ArrayLike) -> Floats:
    """(E,) ``max(0, 1 − R)`` in [0, 1]: near 1 if true answers are far more likely than false ones."""
    return np.maximum(0.0, 1.0 - as_floats(ratios))


@dataclass(frozen=True)
class TruthRatio:
    """Truth ratio. The score of an example is R; the mean is of min(R, 1/R) on forget sets and max(0, 1 − R) on others.

    Attributes:
        definition: how to average over several answers.
    """

    definition: Definition = "arithmetic"

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    # Bounds of the averaged values; R itself has no upper bound.
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "high"
    needs: ClassVar[tuple[Known, ...]] = ("answer", "wrong_answers")

    @property
    def label(self) -> str:
        """Name of its numbers, including the definition."""
        return f"truth_ratio_{self.definition}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) R of each example. For a set without paraphrases, the right answer is used instead, as in TOFU."""
        if known.wrong_answers is None:
            return np.full(len(known.answer), np.nan)
        own = [as_floats([logp]) for logp in known.answer.mean_logps()]
        right = own if known.paraphrases is None else known.paraphrases.mean_logps()
        return truth_ratio(right, known.wrong_answers.mean_logps(), definition=self.definition)

    def averaged(self, scores: Floats, *, forget: bool) -> Floats:
        """(E,) the values to average."""
        return forget_truth_ratio(scores) if forget else kept_truth_ratio(scores)
