"""From one score per example to one number with its interval: the only place that averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # not at run time: comparing runs needs intervals and no torch
    from llm_forget.evaluation.tokens import Floats

RESAMPLES = 2000
# Standard normal quantile of 0.975, for a 95 % interval.
_Z = 1.959963984540054
_MOST_DRAWS = 1 << 22  # indices drawn at a time: 32 MB


@dataclass(frozen=True)
class Aggregate:
    """A mean over examples.

    Attributes:
        value: mean of the scores that are numbers; NaN when there is none.
        n: how many scores that are.
        n_nan: how many examples could not be scored; they are in no mean.
        low: lower end of the 95 % interval; NaN for fewer than two scores, which say nothing about their spread.
        high: its upper end.
        seed: of the bootstrap; None for an interval by a formula.
    """

    value: float
    n: int
    n_nan: int
    low: float
    high: float
    seed: int | None = None


def aggregate(scores: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Aggregate:
    """Mean of the scores with a 95 % percentile-bootstrap interval over examples.

    Args:
        scores: (E,) one score per example; NaN says that it could not be scored.
        seed: of the bootstrap.
        resamples: bootstrap samples.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scored = scores[~np.isnan(scores)]
    n_nan = len(scores) - len(scored)
    if len(scored) == 0:
        return Aggregate(nan, 0, n_nan, nan, nan, seed)
    low, high = interval(
        {"all": len(scored)}, lambda rows: scored[rows["all"]].mean(-1), seed=seed, resamples=resamples
    )
    return Aggregate(float(scored.mean()), len(scored), n_nan, low, high, seed)


def interval(
    sizes: Mapping[str, int],
    statistic: Callable[[Mapping[str, npt.NDArray[np.int64]]], Floats],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a statistic of one or several sets, each resampled by itself.

    Args:
        sizes: how many examples each set has.
        statistic: takes, for each set, (B, n) indices of B resamples, and returns (B,) values.
        seed: of the bootstrap.
        resamples: bootstrap samples in all.

    Returns:
        The 2.5 % and 97.5 % quantiles, of the values that are numbers; NaN twice when a set has fewer than two
        examples.
    """
    if not sizes or min(sizes.values()) < 2:
        return nan, nan
    generator = np.random.default_rng(seed)
    step = max(1, _MOST_DRAWS // sum(sizes.values()))
    values = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        values.append(statistic({name: generator.integers(0, n, (count, n)) for name, n in sizes.items()}))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if len(found) == 0:
        return nan, nan
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def proportion(hits: npt.ArrayLike) -> Aggregate:
    """A share of right answers with its 95 % Wilson interval, which has a width at 0 and 1 too, unlike a bootstrap.

    ``centre = (p + z²/2n) / (1 + z²/n)``, ``half-width = z √(p(1−p)/n + z²/4n²) / (1 + z²/n)``; for 5 of 10 the
    interval is 0.2366 to 0.7634.

    Args:
        hits: (E,) 1 or True for right, 0 or False for wrong, NaN for not scored.
    """
    hits = np.asarray(hits, dtype=np.float64)
    scored = hits[~np.isnan(hits)]
    n = len(scored)
    if n == 0:
        return Aggregate(nan, 0, len(hits), nan, nan)
    share = float(scored.mean())
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z * sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n)) / scale
    return Aggregate(share, n, len(hits) - n, max(0.0, centre - half), min(1.0, centre + half))
