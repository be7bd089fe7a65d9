"""Model utility: one number for the abilities that a model keeps. A harmonic mean, so one bad component lowers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregate import interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of the components' means.

    Attributes:
        value: in [0, 1]; 0 if a component is 0, NaN if a component could not be scored at all.
        n: number of components.
        n_nan: number of components that could not be scored.
        low: lower end of the 95 % interval, a bootstrap over the examples of each set.
        high: upper end of the interval.
        components: ``set.metric`` → mean.
    """

    value: float
    n: int
    n_nan: int
    low: float
    high: float
    components: dict[str, float]

    paper: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"


def harmonic_mean(values: npt.ArrayLike) -> Floats:
    """Compute ``n / Σ 1/x`` over the last axis.

    Args:
        values: (…, n) numbers of 0 or more.

    Returns:
        (…), 0 if one of the values is 0 (the limit), NaN if one of them is NaN. NaN is not ignored, because means of
        different components are not comparable. For 1, ½ and ¼ it is 3/7.

    Raises:
        UserError: there are no values, or one is negative, for which the harmonic mean is not defined.
    """
    values = as_floats(values)
    if values.shape[-1:] in ((), (0,)):
        raise UserError("the harmonic mean of no values is not defined; give at least one component")
    if (values < 0).any():
        raise UserError("the harmonic mean of negative values is not defined; give components of 0 or more")
    with np.errstate(divide="ignore"):
        # 1/0 is ∞ and n/∞ is 0, which is the limit; NaN propagates through the sum
        return as_floats(values.shape[-1] / (1.0 / values).sum(-1))


def model_utility(components: Mapping[str, Mapping[str, npt.ArrayLike]], *, seed: int = 0) -> ModelUtility:
    """Combine the per-example scores of several metrics on several sets.

    Args:
        components: set → metric → (E,) scores in [0, 1]; NaN scores are ignored in the average. The metrics of one set have
            the same order of examples, which are resampled together.
        seed: seed of the bootstrap.

    Returns:
        The harmonic mean over all (set, metric) with its interval.

    Raises:
        UserError: there is no component, or a mean is negative.

    Source: Maini et al. 2024, arXiv:2401.06121, section 2.2.1.
    """
    scores = {
        (name, metric): as_floats(found) for name, metrics in components.items() for metric, found in metrics.items()
    }
    means = {key: _mean(found) for key, found in scores.items()}
    value = float(harmonic_mean(list(means.values())))
    sizes = {name: len(scores[name, metric]) for name, metric in scores}
    low, high = interval(
        sizes,
        lambda rows: harmonic_mean(
            np.stack([_mean_rows(found[rows[key[0]]]) for key, found in scores.items()], axis=-1)
        ),
        seed=seed,
        # Up to nine components per resample: fewer resamples than for a single mean, for the same run time.
        resamples=1000,
    )
    if np.isnan(value):
        low = high = np.nan
    named = {f"{name}.{metric}": mean for (name, metric), mean in means.items()}
    n_nan = sum(bool(np.isnan(mean)) for mean in means.values())
    return ModelUtility(value, len(means), n_nan, low, high, named)


def _mean(scores: Floats) -> float:
    return float(_mean_rows(scores[None, :])[0])


def _mean_rows(scores: Floats) -> Floats:
    """(B, n) → (B,) means of the values that are not NaN; NaN if all are."""
    counts = (~np.isnan(scores)).sum(-1)
    with np.errstate(invalid="ignore"):
        return as_floats(np.nansum(scores, axis=-1) / counts)
