"""AUC: how well one score per row separates members from non-members, over all thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from llm_forget.evaluation.intervals import auc_interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of members against non-members.

    Attributes:
        value: in [0, 1]; 1 if every member scores higher than every non-member, ½ for a random guess, below ½ if members
            score lower, which also identifies them. NaN if a class has no score.
        n: number of members that could be scored.
        n_nonmembers: number of non-members that could be scored.
        n_nan: number of rows in both classes that could not be scored.
        low: lower end of the 95 % interval (``auc_interval``); NaN if a class has fewer than two rows.
        high: upper end of the interval.
    """

    value: float
    n: int
    n_nonmembers: int
    n_nan: int
    low: float
    high: float

    paper: ClassVar[str] = "Mann and Whitney 1947; Fawcett 2006, An introduction to ROC analysis"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> Auc:
    """Compute ``P(member > non-member) + ½ P(member = non-member)``: Mann and Whitney's U divided by the number of pairs.

    Args:
        members: (E,) one score per row that was trained on, NaN for "not scored"; ±∞ is a valid score.
        nonmembers: (E',) one score per row that was not trained on.

    Returns:
        The AUC with its interval. For members 3, 1 and non-members 2, 1 the pairs give 1, 1, 0, ½: 2.5 / 4 = 0.625.
    """
    own, other = as_floats(members), as_floats(nonmembers)
    n_nan = int(np.isnan(own).sum() + np.isnan(other).sum())
    own, other = own[~np.isnan(own)], other[~np.isnan(other)]
    if len(own) == 0 or len(other) == 0:
        return Auc(np.nan, len(own), len(other), n_nan, np.nan, np.nan)
    low, high = auc_interval(own, other)
    return Auc(float(auc_of(own, other)), len(own), len(other), n_nan, low, high)


def auc_of(members: Floats, nonmembers: Floats) -> Floats:
    """AUC of (…, n) and (…, m) scores without NaN, shape (…); ties count half."""
    n, m = members.shape[-1], nonmembers.shape[-1]
    ranks = rankdata(np.concatenate([members, nonmembers], axis=-1), axis=-1)
    return as_floats((ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m))
