"""Forget quality: a test whether the truth ratios differ from the oracle's (a model that never saw the forget set)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp, wilcoxon

from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats

# With fewer examples, p < 0.05 is impossible even if the two samples do not overlap: 2 · 3!² / 6! = 0.1 (two samples),
# 2 / 2⁵ = 0.06 (pairs).
_FEWEST, _FEWEST_PAIRS = 4, 6
LEVEL = 0.05  # of the test that decides


@dataclass(frozen=True)
class ForgetQuality:
    """Result of the tests on truth ratios.

    Attributes:
        pvalue: the published forget quality: p-value of the two-sample Kolmogorov–Smirnov test; NaN if a sample is empty.
        statistic: D, the largest distance between the two empirical distribution functions, in [0, 1].
        paired_pvalue: p-value of Wilcoxon's signed-rank test on the log ratios, question by question. It decides: the
            two-sample test ignores that both models answered the same questions, and rejects too rarely. NaN if the samples
            are not paired.
        n: number of the unlearned model's ratios that are not NaN.
        n_oracle: number of the oracle's ratios that are not NaN.
        n_nan: number of ratios in both samples that are NaN.
        direction: the median change from the oracle: lower, higher or equal; unpaired, the change of the median.
        verdict: the meaning in words. p-values for different n are not comparable.
    """

    pvalue: float
    statistic: float
    paired_pvalue: float
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
        oracle_truth_ratios: (E',) R of the oracle, in the same definition. With E' = E, both are of the same questions in
            the same order.

    Returns:
        The tests' results. A high p-value only means that this number of examples shows no difference.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.2; Wilcoxon 1945, Biometrics Bulletin 1(6).
    """
    ratios, oracle_ratios = as_floats(truth_ratios), as_floats(oracle_truth_ratios)
    n_nan = int(np.isnan(ratios).sum() + np.isnan(oracle_ratios).sum())
    own, oracle = ratios[~np.isnan(ratios)], oracle_ratios[~np.isnan(oracle_ratios)]
    if len(own) == 0 or len(oracle) == 0:
        missing = "the model" if len(own) == 0 else "the oracle"
        verdict = f"not measured: no truth ratio of {missing} could be scored"
        return ForgetQuality(np.nan, np.nan, np.nan, len(own), len(oracle), n_nan, "unknown", verdict)
    result = ks_2samp(own, oracle)
    pvalue, statistic = float(result.pvalue), float(result.statistic)
    changes = _log_changes(ratios, oracle_ratios) if ratios.shape == oracle_ratios.shape else None
    paired = np.nan if changes is None else _signed_rank_pvalue(changes)
    difference = float(np.median(own) - np.median(oracle) if changes is None else np.median(changes))
    direction = "equal" if difference == 0 else "lower" if difference < 0 else "higher"
    verdict = _verdict(statistic, pvalue, paired, len(own), len(oracle), direction)
    return ForgetQuality(pvalue, statistic, paired, len(own), len(oracle), n_nan, direction, verdict)


def _log_changes(own: Floats, oracle: Floats) -> Floats | None:
    """(E,) log R − log R of the oracle, for the questions that both scored; None without any."""
    good = ~(np.isnan(own) | np.isnan(oracle))
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = np.log(own[good]) - np.log(oracle[good])
    return np.nan_to_num(changes, nan=0.0) if good.any() else None  # NaN: both are 0


def _signed_rank_pvalue(changes: Floats) -> float:
    moved = changes[changes != 0]
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0


def _verdict(statistic: float, pvalue: float, paired: float, n: int, n_oracle: int, direction: str) -> str:
    size = f"n = {n}" if n == n_oracle else f"n = {n} and {n_oracle}"
    pairs = "" if np.isnan(paired) else f", paired p = {paired:.2g}"
    if min(n, n_oracle) < (_FEWEST if np.isnan(paired) else _FEWEST_PAIRS):
        return f"too few examples for a test ({size})"
    numbers = f"D = {statistic:.2f}, p = {pvalue:.2g}{pairs}, {size}"
    if (pvalue if np.isnan(paired) else paired) > LEVEL:
        return f"no significant difference from the oracle ({numbers})"
    # A low ratio means that the model still prefers right answers (memory), a high one that it prefers wrong answers.
    meaning = {
        "lower": "its truth ratios are lower: it prefers right answers more than a model that never saw them",
        "higher": "its truth ratios are higher: it prefers right answers less than a model that never saw them",
        "equal": "the medians are equal, but the distributions differ",
    }[direction]
    return f"differs from the oracle ({numbers}); {meaning}"
