"""Model utility: one number for what a model still can, as low as its worst part allows."""

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
        value: in [0, 1]; 0 when a component is 0, NaN when one could not be scored at all.
        n: how many components there are.
        n_nan: how many of them could not be scored.
        low: lower end of the 95 % interval, a bootstrap over the examples of each set.
        high: its upper end.
        components: the mean of each, by ``set.metric``.
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
    """``n / Σ 1/x`` over the last axis.

    Args:
        values: (…, n) numbers of 0 or more.

    Returns:
        (…), 0 where one of them is 0 (the limit), NaN where one of them is NaN: leaving it out would compare different
        things under one name. Of 1, ½ and ¼ it is 3/7.

    Raises:
        UserError: nothing to average, or a negative number, for which a harmonic mean means nothing.
    """
    values = as_floats(values)
    if values.shape[-1:] in ((), (0,)):
        raise UserError("a harmonic mean of no values was asked for; give at least one component")
    if (values < 0).any():
        raise UserError("a harmonic mean of negative values was asked for; only components of 0 or more have one")
    with np.errstate(divide="ignore"):
        # 1/0 is ∞, and n/∞ is 0: the limit; NaN goes through the sum
        return as_floats(values.shape[-1] / (1.0 / values).sum(-1))


def model_utility(components: Mapping[str, Mapping[str, npt.ArrayLike]], *, seed: int = 0) -> ModelUtility:
    """Combine the per-example scores of several metrics on several sets.

    Args:
        components: set → metric → (E,) scores in [0, 1], averaged without the NaN among them; all of a set in one order
            of its examples, which are resampled together.
        seed: of the bootstrap.

    Returns:
        The harmonic mean over all (set, metric) with its interval.

    Raises:
        UserError: no component, or a negative mean.

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
        # Nine components and the indices of all: fewer resamples than for a mean, in the same time.
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
    """(B, n) → (B,) means of what is not NaN; NaN where all is."""
    counts = (~np.isnan(scores)).sum(-1)
    with np.errstate(invalid="ignore"):
        return as_floats(np.nansum(scores, axis=-1) / counts)
