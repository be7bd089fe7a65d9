"""AUC: how well one score per row tells members from non-members, whatever the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from llm_forget.evaluation.aggregate import RESAMPLES, interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of members against non-members.

    Attributes:
        value: in [0, 1]; 1 when every member scores higher, ½ when nothing tells them apart, below ½ when members score
            lower, which gives them away just as well. NaN when a class has no score.
        n: members that could be scored.
        n_nonmembers: non-members that could be scored.
        n_nan: rows of either class that could not be.
        low: lower end of the 95 % interval, a bootstrap that resamples both classes; NaN with fewer than two of either.
        high: its upper end.
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


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Auc:
    """``P(member > non-member) + ½ P(member = non-member)`` over all pairs: Mann and Whitney's U over their number.

    Args:
        members: (E,) one score per row that was trained on, NaN for "not scored"; ±∞ is a score.
        nonmembers: (E',) one score per row that was not.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Returns:
        The AUC with its interval. For members 3, 1 and non-members 2, 1 the pairs give 1, 1, 0, ½: 2.5 / 4 = 0.625.
    """
    own, other = as_floats(members), as_floats(nonmembers)
    n_nan = int(np.isnan(own).sum() + np.isnan(other).sum())
    own, other = own[~np.isnan(own)], other[~np.isnan(other)]
    if len(own) == 0 or len(other) == 0:
        return Auc(np.nan, len(own), len(other), n_nan, np.nan, np.nan)
    low, high = interval(
        {"members": len(own), "nonmembers": len(other)},
        lambda rows: auc_of(own[rows["members"]], other[rows["nonmembers"]]),
        seed=seed,
        resamples=resamples,
    )
    return Auc(float(auc_of(own, other)), len(own), len(other), n_nan, low, high)


def auc_of(members: Floats, nonmembers: Floats) -> Floats:
    """(…, n) and (…, m) scores without NaN → (…) AUC; ties count half."""
    n, m = members.shape[-1], nonmembers.shape[-1]
    ranks = rankdata(np.concatenate([members, nonmembers], axis=-1), axis=-1)
    return as_floats((ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m))
