"""Equivalence tests: how much of what the target knew is left, and whether other knowledge is kept. Arrays only.

``R = mean(unlearned − oracle) / mean(target − oracle)`` on the same questions is 1 for the target and 0 for the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.intervals import influence_interval, placements

if TYPE_CHECKING:
    from llm_forget.evaluation.tokens import Floats

MARGIN = 0.2  # |R| below which a model counts as one that never saw the data
LOSS = 0.05  # relative loss below which other knowledge counts as kept
_LEVEL = 0.90  # two one-sided tests at 5 %
_FEWEST = 10  # rows without which nothing is called kept


class Answer(Enum):
    """The answers about what should be forgotten."""

    AS_IF_NEVER_SEEN = "as if never seen"
    LEFT = "left"
    OVERDONE = "overdone"
    TOO_FEW = "too few rows to tell"
    CANNOT_TELL = "this metric cannot tell"


class Kept(Enum):
    """The answers about what must stay."""

    KEPT = "kept"
    HARMED = "harmed"
    TOO_FEW = "too few rows to tell"


@dataclass(frozen=True)
class Moments:
    """Means and (co)variances of the two differences of R = a / b.

    Attributes:
        rows: number of questions.
        a: mean of unlearned − oracle.
        b: mean of target − oracle.
        var_a: variance of the mean a.
        var_b: variance of the mean b.
        cov: covariance of both means.
    """

    rows: int
    a: float
    b: float
    var_a: float
    var_b: float
    cov: float

    def with_row(self, a: float, b: float) -> Moments:
        """The moments with one more question."""
        n, more = self.rows, self.rows + 1
        old, new = n * (n - 1), n * more  # from variances of a mean to sums of squares, and back
        first, second, shrink = a - self.a, b - self.b, n / more
        return Moments(
            more,
            self.a + first / more,
            self.b + second / more,
            (old * self.var_a + shrink * first * first) / new,
            (old * self.var_b + shrink * second * second) / new,
            (old * self.cov + shrink * first * second) / new,
        )


@dataclass(frozen=True)
class Equivalence:
    """How much of what the target knew is left.

    Attributes:
        answer: the answer.
        ratio: R: 1 for the target, 0 for the oracle, below 0 beyond the oracle; NaN if the metric cannot tell.
        low: lower end of the 90 % interval of R.
        high: upper end.
        rows: number of questions.
        needed: about how many questions would decide; None if decided or unknown.
    """

    answer: Answer
    ratio: float
    low: float
    high: float
    rows: int
    needed: int | None = None


@dataclass(frozen=True)
class NonInferiority:
    """Whether other knowledge is kept.

    Attributes:
        answer: the answer.
        loss: the loss, as a share of the reference's mean; negative for a gain.
        low: lower end of the 90 % interval of the loss.
        high: upper end.
        rows: number of questions.
        needed: about how many questions would decide; None if decided or unknown.
    """

    answer: Kept
    loss: float
    low: float
    high: float
    rows: int
    needed: int | None = None


def paired_moments(unlearned: npt.ArrayLike, oracle: npt.ArrayLike, target: npt.ArrayLike) -> Moments:
    """Moments of three models' (n,) scores of the same questions, n ≥ 2."""
    own, never, before = (np.asarray(one, dtype=np.float64) for one in (unlearned, oracle, target))
    a, b = own - never, before - never
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    return Moments(len(a), float(a.mean()), float(b.mean()), float(var_a), float(var_b), float(cov))


def auc_moments(members: Sequence[npt.ArrayLike], nonmembers: Sequence[npt.ArrayLike]) -> Moments:
    """Moments of the AUCs of unlearned, oracle and target on the same rows.

    Args:
        members: (n,) scores of the three models, n ≥ 2, in that order of models and without NaN.
        nonmembers: (m,) scores of the three models, m ≥ 2.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44(3).
    """
    parts = [placements(own, other) for own, other in zip(members, nonmembers, strict=True)]
    rows = min(len(parts[0][0]), len(parts[0][1]))
    spread = sum(np.cov([part[at] for part in parts]) / len(parts[0][at]) for at in (0, 1))
    means = np.array([part[0].mean() for part in parts])
    contrasts = np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]])
    a, b = contrasts @ means
    (var_a, cov), (_, var_b) = contrasts @ spread @ contrasts.T
    return Moments(rows, float(a), float(b), max(float(var_a), 0.0), max(float(var_b), 0.0), float(cov))


def independent_moments(
    rows: int, unlearned: tuple[float, float], oracle: tuple[float, float], target: tuple[float, float]
) -> Moments:
    """Moments from each model's mean and standard error alone, as if the questions were not the same.

    Scores of the same questions are usually correlated, so this overstates the uncertainty.
    """
    squares = [error**2 for _, error in (unlearned, oracle, target)]
    a, b = unlearned[0] - oracle[0], target[0] - oracle[0]
    return Moments(rows, a, b, squares[0] + squares[1], squares[2] + squares[1], squares[1])


def equivalence(found: Moments, *, margin: float = MARGIN) -> Equivalence:
    """Decide how much is left, from two one-sided tests at 5 %.

    The interval of the ratio is Fieller's. Its upper end is that of a sample with one imagined question more, whose gap between
    target and oracle is one standard deviation above the mean, and of which everything is left. Without it, ten questions of
    which none is left would prove that less than a fifth of all is left, which happens in 0.8¹⁰ = 11 % of the draws from a
    model that remembers every fifth question. With it, fewer than 13 questions never prove it.

    Args:
        found: the moments.
        margin: |R| below which a model counts as one that never saw the data.

    Source: Schuirmann 1987 (two one-sided tests); Fieller 1954, J. R. Stat. Soc. B 16(2).
    """
    if not _tells(found):
        return Equivalence(Answer.CANNOT_TELL, math.nan, math.nan, math.nan, found.rows)
    ratio = found.a / found.b
    low, high = _fieller(found, found.rows - 1)
    gap = math.copysign(abs(found.b) + math.sqrt(found.rows * found.var_b), found.b)
    high = max(high, _fieller(found.with_row(max(1.0, ratio) * gap, gap), found.rows - 1)[1])
    answer, needed = Answer.TOO_FEW, None
    if -margin < low and high < margin:
        answer = Answer.AS_IF_NEVER_SEEN
    elif low > 0:
        answer = Answer.LEFT
    elif high < 0:
        answer = Answer.OVERDONE
    else:
        shrinks = [min(_room(margin - ratio, high - ratio), _room(margin + ratio, ratio - low))]
        shrinks.append(_room(ratio, ratio - low) if ratio > 0 else _room(-ratio, high - ratio))
        needed = _rows_needed(found.rows, max(shrinks))
    return Equivalence(answer, ratio, low, high, found.rows, needed)


def kept_pairs(
    own: npt.ArrayLike, reference: npt.ArrayLike, *, bad: int, relative: bool = True, margin: float = LOSS
) -> NonInferiority:
    """Decide whether (n,) scores are kept against the reference's scores of the same questions.

    Args:
        own: the unlearned model's scores.
        reference: the scores of the target, or of the oracle.
        bad: the direction of harm: −1 if lower is worse, 1 if higher is worse.
        relative: whether the loss is a share of the reference's mean; otherwise it is in the scores' own unit.
        margin: loss below which the scores count as kept.
    """
    scores, other = np.asarray(own, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    loss, low, high = _loss_interval(scores, other, bad, relative, _LEVEL)
    if np.isin([scores, other], (0.0, 1.0)).all() and not math.isnan(high):
        # a row is lost as a whole here, so rows of which none is lost do not show that none would be: count one more as lost
        lost = np.append(bad * (scores - other), 1.0)
        upper = lost.mean() + _quantile(_LEVEL, len(scores)) * lost.std(ddof=1) / math.sqrt(len(lost))
        high = max(high, float(upper) / (float(other.mean()) if relative else 1.0))
    sure = _loss_interval(scores, other, bad, relative, 0.95)[1]
    return _non_inferiority(loss, (low, high), sure, len(scores), margin)


def _loss_interval(scores: Floats, other: Floats, bad: int, relative: bool, level: float) -> tuple[float, float, float]:
    """The loss and its interval; NaN if it is a share of 0."""
    lost, mean = bad * (scores - other), float(other.mean())
    size = abs(mean) if relative else 1.0
    if not size > 0:
        return math.nan, math.nan, math.nan
    loss = float(lost.mean()) / size
    spread = (lost - loss * math.copysign(1, mean) * other) / size if relative else lost
    return loss, *influence_interval(loss, [spread], level=level)


def kept_means(
    rows: int,
    own: tuple[float, float],
    reference: tuple[float, float],
    *,
    bad: int,
    relative: bool = True,
    margin: float = LOSS,
) -> NonInferiority:
    """The same from each model's mean and standard error alone, as if the questions were not the same."""
    size = abs(reference[0]) if relative else 1.0
    if not size > 0 or rows < 2:
        return NonInferiority(Kept.TOO_FEW, math.nan, math.nan, math.nan, rows)
    loss = bad * (own[0] - reference[0]) / size
    # the derivative of the loss by the reference's mean is −bad · own / reference² for a share
    slope = own[0] / reference[0] if relative else 1.0
    error = math.hypot(own[1], slope * reference[1]) / size
    ends = {level: _quantile(level, rows - 1) * error for level in (_LEVEL, 0.95)}
    return _non_inferiority(loss, (loss - ends[_LEVEL], loss + ends[_LEVEL]), loss - ends[0.95], rows, margin)


def _non_inferiority(loss: float, ends: tuple[float, float], sure: float, rows: int, margin: float) -> NonInferiority:
    low, high = ends
    answer, needed = Kept.TOO_FEW, None
    if high < margin and rows >= _FEWEST:
        answer = Kept.KEPT
    elif high < margin:
        needed = _FEWEST
    elif sure > 0 and loss > margin:
        answer = Kept.HARMED
    elif not math.isnan(low):
        shrink = _room(margin - loss, high - loss) if loss < margin else _room(loss, loss - sure)
        needed = _rows_needed(rows, shrink)
    return NonInferiority(answer, loss, low, high, rows, needed)


def _tells(found: Moments) -> bool:
    """Whether the 95 % interval of target − oracle excludes 0."""
    if found.rows < 2 or not math.isfinite(found.a) or not math.isfinite(found.b):
        return False
    return abs(found.b) > _quantile(0.95, found.rows - 1) * math.sqrt(found.var_b)


def _fieller(found: Moments, freedom: int) -> tuple[float, float]:
    """90 % interval of a / b: the values r with ``(a − r b)² ≤ q² var(a − r b)``. Infinite if b may be 0."""
    square = _quantile(_LEVEL, freedom) ** 2
    first = found.b**2 - square * found.var_b
    half = found.a * found.b - square * found.cov
    last = found.a**2 - square * found.var_a
    if first <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(half**2 - first * last, 0.0))
    return (half - root) / first, (half + root) / first


def _quantile(level: float, freedom: int) -> float:
    from scipy.stats import t as student  # imported here: it is slow

    return float(student.ppf((1 + level) / 2, freedom))


def _room(most: float, width: float) -> float:
    """The factor by which a half-width must shrink to fit; 0 if it cannot."""
    return most / width if most > 0 and 0 < width < math.inf else 0.0


def _rows_needed(rows: int, shrink: float) -> int | None:
    """Rows at which intervals are ``shrink`` times as wide, rounded up to two digits."""
    if not 0 < shrink < 1:
        return None
    needed = rows / shrink**2
    if needed > 1e6:
        return None
    unit: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / unit) * unit
