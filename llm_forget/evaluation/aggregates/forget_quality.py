"""Forget quality: can the model's truth ratios be told apart from those of one that never saw the forget set?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import as_floats

# Fewer examples than this cannot reach p < 0.05 even when the two samples do not overlap: 2 · 3!² / 6! = 0.1.
_FEWEST = 4


@dataclass(frozen=True)
class ForgetQuality:
    """Result of the two-sample Kolmogorov–Smirnov test on truth ratios.

    Attributes:
        pvalue: chance of at least this distance if both came from one distribution; NaN when either side has no ratio.
        statistic: largest distance of the two distribution functions, in [0, 1].
        n: ratios of the unlearned model that are numbers.
        n_oracle: those of the oracle.
        n_nan: ratios on either side that could not be scored.
        direction: on which side of the oracle's the unlearned model's median lies: lower, higher or equal.
        verdict: what that means, in words; p-values of different n do not compare.
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
        The test's result. A high p-value says only that this many examples show no difference.

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
        return f"too few examples to tell anything ({size})"
    if pvalue > 0.05:
        return f"not told apart from the oracle (p = {pvalue:.2g}, {size})"
    # A low ratio means that right answers still stand out: memory. A high one: wrong answers are preferred.
    meaning = {
        "lower": "its truth ratios lie lower: right answers stand out more than for a model that never saw them",
        "higher": "its truth ratios lie higher: right answers stand out less than for a model that never saw them",
        "equal": "the medians agree and the distributions do not",
    }[direction]
    return f"differs from the oracle (p = {pvalue:.2g}, {size}); {meaning}"
