"""Average the scores of examples into one number with a confidence interval. No other module averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.intervals import Bounds, binomial_interval, mean_interval

if TYPE_CHECKING:  # not imported at run time, so that runs can be compared without torch
    from llm_forget.evaluation.tokens import Floats

RESAMPLES = 2000
_MOST_DRAWS = 1 << 22  # bootstrap indices drawn in one step: 32 MB


@dataclass(frozen=True)
class Estimate:
    """One number with its interval, such as a mean over examples.

    Attributes:
        value: the mean of the scores that are not NaN; NaN if all are.
        n: number of scores in the mean.
        n_nan: number of examples that could not be scored; the mean leaves them out.
        low: lower end of the 95 % interval; NaN for fewer than two scores, which have no spread.
        high: upper end of the interval.
        seed: seed of the bootstrap; None if a formula gives the interval.
    """

    value: float
    n: int
    n_nan: int
    low: float
    high: float
    seed: int | None = None


def aggregate(scores: npt.ArrayLike, *, bounds: Bounds = (None, None)) -> Estimate:
    """Mean of the scores with its 95 % interval over examples (``mean_interval``).

    Args:
        scores: (E,) one score per example; NaN for an example that could not be scored.
        bounds: lowest and highest possible score. Scores of only 0 and 1 are a rate if these are the bounds.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scored = scores[~np.isnan(scores)]
    n_nan = len(scores) - len(scored)
    if len(scored) == 0:
        return Estimate(nan, 0, n_nan, nan, nan)
    return Estimate(float(scored.mean()), len(scored), n_nan, *mean_interval(scored, bounds=bounds))


def interval(
    sizes: Mapping[str, int],
    statistic: Callable[[Mapping[str, npt.NDArray[np.int64]]], Floats],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a statistic over one or several sets, each resampled independently.

    Args:
        sizes: number of examples of each set.
        statistic: takes the (B, n) indices of B resamples for each set, and returns (B,) values.
        seed: seed of the bootstrap.
        resamples: total number of bootstrap samples.

    Returns:
        The 2.5 % and 97.5 % quantiles of the values that are not NaN. Both are NaN if a set has fewer than two examples.
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


def proportion(hits: npt.ArrayLike) -> Estimate:
    """Share of correct answers with its 95 % Wilson interval.

    Unlike a bootstrap interval, it has a width at shares of 0 and 1 too. For 5 of 10 it is 0.2366 to 0.7634.

    Args:
        hits: (E,) 1 or True for a correct answer, 0 or False for a wrong one, NaN for one that could not be scored.
    """
    hits = np.asarray(hits, dtype=np.float64)
    scored = hits[~np.isnan(hits)]
    n = len(scored)
    if n == 0:
        return Estimate(nan, 0, len(hits), nan, nan)
    low, high = binomial_interval(int(scored.sum()), n, "wilson")
    return Estimate(float(scored.mean()), n, len(hits) - n, low, high)
