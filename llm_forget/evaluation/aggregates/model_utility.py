"""Model utility: one number for the abilities that a model keeps. A harmonic mean, so one bad component lowers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.errors import UserError
from llm_forget.evaluation.intervals import influence_interval, mean_interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of the components' means.

    Attributes:
        value: in [0, 1]; 0 if a component is 0, NaN if a component could not be scored at all.
        n: number of components.
        n_nan: number of components that could not be scored.
        low: lower end of the 95 % interval over the examples of each set, by the delta method.
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


def model_utility(components: Mapping[str, Mapping[str, npt.ArrayLike]]) -> ModelUtility:
    """Combine the per-example scores of several metrics on several sets.

    Args:
        components: set → metric → (E,) scores in [0, 1]; NaN scores are ignored in the average. The metrics of one set have
            the same order of examples, so that their errors are not independent.

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
    low, high = _interval(value, scores, means)
    named = {f"{name}.{metric}": mean for (name, metric), mean in means.items()}
    n_nan = sum(bool(np.isnan(mean)) for mean in means.values())
    return ModelUtility(value, len(means), n_nan, low, high, named)


def _interval(
    value: float, scores: Mapping[tuple[str, str], Floats], means: Mapping[tuple[str, str], float]
) -> tuple[float, float]:
    """The interval of the harmonic mean, whose derivative by a component's mean m is ``value² / (parts · m²)``."""
    if np.isnan(value):
        return np.nan, np.nan
    if value == 0:
        # no derivative at 0: the upper end takes each component of 0 at its own upper end
        ends = [mean or mean_interval(_scored(scores[key]), bounds=(0, 1))[1] for key, mean in means.items()]
        return 0.0, float(harmonic_mean(ends))
    by_set: dict[str, Floats] = {}
    for key, found in scores.items():
        share = (~np.isnan(found)).mean()
        weight = value**2 / (len(means) * means[key] ** 2 * share)
        part = np.where(np.isnan(found), 0.0, weight * (found - means[key]))
        by_set[key[0]] = by_set[key[0]] + part if key[0] in by_set else part
    return influence_interval(value, list(by_set.values()), bounds=(0, 1))


def _scored(scores: Floats) -> Floats:
    return scores[~np.isnan(scores)]


def _mean(scores: Floats) -> float:
    scored = _scored(scores)
    return float(scored.mean()) if len(scored) else float("nan")
