"""Truth ratio: how likely false answers are beside a true one that the model was not trained on word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats

Definition = Literal["arithmetic", "geometric"]
# exp of more than this overflows; a ratio so far from 1 counts the same.
_LARGEST_LOG = 700.0


def truth_ratio(
    right_mean_logps: Sequence[npt.ArrayLike], wrong_mean_logps: Sequence[npt.ArrayLike], *, definition: Definition
) -> Floats:
    """``R = P(wrong) / P(right)`` with length-normalised probabilities p = exp(mean log-prob).

    ``arithmetic``: P is the mean of the p of an example's answers (the TOFU authors' code).
    ``geometric``: P is exp of the mean of their log p (later toolkits). They are two quantities: never compare across
    them.

    Args:
        right_mean_logps: E arrays with the mean log-probs of the paraphrased right answers, nats.
        wrong_mean_logps: E arrays with those of the wrong answers.
        definition: which mean.

    Returns:
        (E,) in [0, ∞), kept within e^±700; NaN where an answer is NaN or there is none of either kind, or both are
        −∞. For a right answer at 0.2 and wrong ones at 0.1 and 0.4 it is 0.25 / 0.2 = 1.25 or √0.04 / 0.2 = 1.

    Source: Maini et al. 2024, arXiv:2401.06121, equation 1.
    """
    found = []
    for right, wrong in zip(right_mean_logps, wrong_mean_logps, strict=True):
        with np.errstate(invalid="ignore"):  # −∞ − (−∞) is NaN, which is what two impossible answers should give
            found.append(_log_mean(as_floats(wrong), definition) - _log_mean(as_floats(right), definition))
    return np.exp(np.clip(as_floats(found), -_LARGEST_LOG, _LARGEST_LOG))


def _log_mean(logps: Floats, definition: Definition) -> float:
    """Log of the mean probability of several answers; NaN for none."""
    if len(logps) == 0 or np.isnan(logps).any():
        return float("nan")
    if definition == "geometric":
        return float(logps.mean())
    return float(np.logaddexp.reduce(logps) - np.log(len(logps)))


def forget_truth_ratio(ratios: npt.ArrayLike) -> Floats:
    """(E,) ``min(R, 1/R)`` in [0, 1]: near 1 when the model no longer tells true from false, in either direction."""
    with np.errstate(divide="ignore"):
        return np.exp(-np.abs(np.log(as_floats(ratios))))


def kept_truth_ratio(ratios: npt.ArrayLike) -> Floats:
    """(E,) ``max(0, 1 − R)`` in [0, 1]: near 1 when true answers are far more likely than false ones."""
    return np.maximum(0.0, 1.0 - as_floats(ratios))


@dataclass(frozen=True)
class TruthRatio:
    """Truth ratio; per example R itself, averaged as min(R, 1/R) over forget sets and as max(0, 1 − R) over others.

    Attributes:
        definition: how several answers are averaged.
    """

    definition: Definition = "arithmetic"

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    # Of what is averaged; R itself has no upper bound.
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "high"
    needs: ClassVar[tuple[Known, ...]] = ("answer", "wrong_answers")

    @property
    def label(self) -> str:
        """Name of its numbers, the definition included."""
        return f"truth_ratio_{self.definition}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) R of each example; where a set has no paraphrases, the answer takes their place, as in TOFU."""
        if known.wrong_answers is None:
            return np.full(len(known.answer), np.nan)
        own = [as_floats([logp]) for logp in known.answer.mean_logps()]
        right = own if known.paraphrases is None else known.paraphrases.mean_logps()
        return truth_ratio(right, known.wrong_answers.mean_logps(), definition=self.definition)

    def averaged(self, scores: Floats, *, forget: bool) -> Floats:
        """(E,) what the mean is taken of."""
        return forget_truth_ratio(scores) if forget else kept_truth_ratio(scores)
