"""Forget quality: a test whether the truth ratios differ from the oracle's (a model that never saw the forget set)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import as_floats

# With fewer examples, p < 0.05 is impossible even if the two samples do not overlap: 2 · 3!² / 6! = 0.1.
_FEWEST = 4


@dataclass(frozen=True)
class ForgetQuality:
    """Result of the two-sample Kolmogorov–Smirnov test on truth ratios.

    Attributes:
        pvalue: probability of at least this distance if both samples have the same distribution; NaN if a sample is empty.
        statistic: largest distance between the two empirical distribution functions, in [0, 1].
        n: number of the unlearned model's ratios that are not NaN.
        n_oracle: number of the oracle's ratios that are not NaN.
        n_nan: number of ratios in both samples that are NaN.
        direction: the unlearned model's median compared with the oracle's: lower, higher or equal.
        verdict: the meaning in words. p-values for different n are not comparable.
    """

    pvalue: float
    statistic: float
    n: int
    n_oracle: int
    n_nan: int
    direction: str
    verdict: str

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "high"


def forget_quality(truth_ratios: npt.ArrayLike, oracle_truth_ratios: npt.ArrayLike) -> ForgetQuality:
    """Compare truth ratios on the forget set with the oracle's.

    Args:
        truth_ratios: (E,) R of the unlearned model, in one definition; NaN for "not scored".
        oracle_truth_ratios: (E',) R of the oracle, in the same definition.

    Returns:
        The test's result. A high p-value only means that this number of examples shows no difference.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.2.
    """
    own, oracle = as_floats(truth_ratios), as_floats(oracle_truth_ratios)
    n_nan = int(np.isnan(own).sum() + np.isnan(oracle).sum())
    own, oracle = own[~np.isnan(own)], oracle[~np.isnan(oracle)]
    if len(own) == 0 or len(oracle) == 0:
        missing = "the model" if len(own) == 0 else "the oracle"
        verdict = f"not measured: no truth ratio of {missing} could be scored"
        return ForgetQuality(np.nan, np.nan, len(own), len(oracle), n_nan, "unknown", verdict)
    result = ks_2samp(own, oracle)
    pvalue, statistic = float(result.pvalue), float(result.statistic)
    difference = float(np.median(own) - np.median(oracle))
    direction = "equal" if difference == 0 else "lower" if difference < 0 else "higher"
    verdict = _verdict(pvalue, len(own), len(oracle), direction)
    return ForgetQuality(pvalue, statistic, len(own), len(oracle), n_nan, direction, verdict)


def _verdict(pvalue: float, n: int, n_oracle: int, direction: str) -> str:
    size = f"n = {n}" if n == n_oracle else f"n = {n} and {n_oracle}"
    if min(n, n_oracle) < _FEWEST:
        return f"too few examples for a test ({size})"
    if pvalue > 0.05:
        return f"no significant difference from the oracle (p = {pvalue:.2g}, {size})"
    # A low ratio means that the model still prefers right answers (memory), a high one that it prefers wrong answers.
    meaning = {
        "lower": "its truth ratios are lower: it prefers right answers more than a model that never saw them",
        "higher": "its truth ratios are higher: it prefers right answers less than a model that never saw them",
        "equal": "the medians are equal, but the distributions differ",
    }[direction]
    return f"differs from the oracle (p = {pvalue:.2g}, {size}); {meaning}"
