"""PrivLeak: the success of the Min-K attack compared with its success on the oracle, which never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, nan
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregates.auc import auc_of
from llm_forget.evaluation.intervals import auc_interval, influence_interval, placements
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats

# Above this value the denominator 1 − AUC of the oracle is small, so the percentage says little about the leak.
_LARGE = 100.0
BOUNDS = (-100.0, float("inf"))


@dataclass(frozen=True)
class PrivLeak:
    """PrivLeak of one model against the oracle.

    Attributes:
        value: per cent, in [−100, ∞); near 0 if the attack works as well as on the oracle. Negative: members still score
            higher than with the oracle. Positive: they score lower, which also identifies them. NaN if a class has no
            score or the oracle's AUC is 1.
        n: number of members scored by both models.
        n_nonmembers: number of non-members scored by both models.
        n_nan: number of rows that at least one model could not score.
        low: lower end of the 95 % interval: the delta method over rows, paired by row.
        high: upper end of the interval.
        auc: the model's AUC on these rows.
        oracle_auc: the oracle's AUC on these rows.
        note: a remark on the value, or empty.
    """

    value: float
    n: int
    n_nonmembers: int
    n_nan: int
    low: float
    high: float
    auc: float
    oracle_auc: float
    note: str

    paper: ClassVar[str] = "Shi et al. 2024, arXiv:2407.06460"
    bounds: ClassVar[tuple[float, float]] = BOUNDS
    forgotten: ClassVar[Direction] = "none"


def privleak_of(auc: npt.ArrayLike, oracle_auc: npt.ArrayLike | None) -> Floats:
    """Compute ``((1 − AUC) − (1 − AUC_oracle)) / (1 − AUC_oracle) · 100``; high scores mean member.

    Args:
        auc: (…) the model's AUC, in [0, 1].
        oracle_auc: (…) the oracle's AUC, in [0, 1].

    Returns:
        (…) per cent; NaN if the oracle's AUC is 1, because the denominator is 0. AUC 0.9 against 0.5 gives −80, and 0.2
        against 0.5 gives 60.

    Raises:
        UserError: there is no oracle. Assuming an AUC of ½ would be a guess: on short or easy rows, an oracle's AUC is
            often far from ½.

    Source: Shi et al. 2024, arXiv:2407.06460, section 3 (there with the AUC of non-members, 1 − AUC).
    """
    if oracle_auc is None:
        raise UserError(
            "PrivLeak needs the oracle's AUC, but none was given; run the same suite on a model that never saw the forget "
            "set, and give its results as `oracle`"
        )
    own, oracle = 1.0 - as_floats(auc), 1.0 - as_floats(oracle_auc)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(oracle > 0, 100.0 * (own - oracle) / oracle, np.nan)


def privleak(members: Sequence[npt.ArrayLike], nonmembers: Sequence[npt.ArrayLike]) -> PrivLeak:
    """Compute PrivLeak with its interval from the Min-K scores of both models on the same rows.

    Args:
        members: (E,) scores of the model and (E,) scores of the oracle, with the rows in the same order.
        nonmembers: (E',) scores of the model and (E',) scores of the oracle.
    """
    own, oracle, missing = _both(members)
    other, oracle_other, more = _both(nonmembers)
    if len(own) == 0 or len(other) == 0:
        note = "not computed: no row of one class could be scored"
        return PrivLeak(np.nan, len(own), len(other), missing + more, np.nan, np.nan, np.nan, np.nan, note)
    found, expected = auc_of(own, other), auc_of(oracle, oracle_other)
    value = float(privleak_of(found, expected))
    low, high = _interval(own, other, oracle, oracle_other)
    note = _note(value)
    return PrivLeak(value, len(own), len(other), missing + more, low, high, float(found), float(expected), note)


def _interval(own: Floats, other: Floats, oracle: Floats, oracle_other: Floats) -> tuple[float, float]:
    """95 % interval: the delta method for the logarithm of (1 − AUC) / (1 − AUC_oracle), paired by row."""
    # 1 − AUC is the mean over members, and over non-members, of the share of the other class that ranks the other way
    wrong, expected = ([1 - one for one in placements(*pair)] for pair in ((own, other), (oracle, oracle_other)))
    rest, expected_rest = float(wrong[0].mean()), float(expected[0].mean())
    if not expected_rest > 0:
        return nan, nan
    if not rest > 0:  # no logarithm; the oracle's own uncertainty is left out
        return BOUNDS[0], 100 * ((1 - auc_interval(own, other)[0]) / expected_rest - 1)
    samples = [mine / rest - theirs / expected_rest for mine, theirs in zip(wrong, expected, strict=True)]
    low, high = influence_interval(log(rest / expected_rest), samples, skewed=False)
    return 100 * (exp(low) - 1), 100 * (exp(high) - 1)


def _both(scores: Sequence[npt.ArrayLike]) -> tuple[Floats, Floats, int]:
    """The scores of the rows that both models scored, and the number of other rows."""
    own, oracle = (as_floats(one) for one in scores)
    if own.shape != oracle.shape:
        raise UserError(
            f"PrivLeak needs scores of the same rows; {len(own)} of the model and {len(oracle)} of the oracle were given"
        )
    good = ~(np.isnan(own) | np.isnan(oracle))
    return own[good], oracle[good], int((~good).sum())


def _note(value: float) -> str:
    if np.isnan(value):
        return "not computed: the oracle's AUC is 1, and the formula divides by 1 − AUC"
    if value > _LARGE:
        return "above 100: the percentage has no upper bound, so compare the two AUCs instead"
    return ""
