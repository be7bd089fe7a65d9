"""Row targets: how likely a model that never saw a forget row finds its answer, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.train.calibration import Calibrated, calibrated, measure_changes, style_levels
from llm_forget.train.origin import BaseScores, unseen
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.teacher import Teacher


@dataclass(frozen=True)
class RowTargets:
    """The mean log-prob per answer token that each forget row should reach.

    Attributes:
        values: (n,) nats per token, at most the row's own log-prob before the run.
        source: what they were computed from: the base and holdout rows, the base alone, or holdout rows alone.
        shift: nats per token that fine-tuning added to rows it never saw; 0 without base or holdout.
        rows: number of holdout rows.
    """

    values: tuple[float, ...]
    source: Literal["base and holdout", "base", "holdout"]
    shift: float
    rows: int

    @property
    def told(self) -> dict[str, Any]:
        """A summary for the run's record."""
        mean = math.fsum(self.values) / len(self.values)
        return {"source": self.source, "mean": mean, "shift": self.shift, "holdout_rows": self.rows}


def targets_from_base(
    base_forget: Sequence[float],
    forget: Sequence[float],
    base_holdout: Sequence[float] = (),
    holdout: Sequence[float] = (),
) -> RowTargets:
    """Targets from the model before fine-tuning: ``t_i = log p_base(i) + mean over holdout rows of (log p − log p_base)``.

    The base never saw the forget rows. What fine-tuning changes in rows that it does not contain, such as their style, shows
    in the holdout rows. A row is never asked to become more likely than it is.

    Args:
        base_forget: (n,) mean log-prob per answer token of each forget row under the base, in nats.
        forget: (n,) the same under the model to unlearn.
        base_holdout: (m,) the same of rows that neither model was trained on, under the base; empty without such rows.
        holdout: (m,) the same under the model to unlearn.

    Returns:
        (n,) targets. log p_base = −3, and −2 → −2.5 on the only holdout row, give −3.5.

    Raises:
        ValueError: the lengths differ, or a number is not finite.
    """
    if len(base_forget) != len(forget) or len(base_holdout) != len(holdout):
        raise ValueError(
            f"log-probs of {len(base_forget)} and {len(forget)} forget rows and of {len(base_holdout)} and {len(holdout)} "
            "holdout rows; both models must score the same rows"
        )
    _refuse_not_finite(base_forget, forget, base_holdout, holdout)
    changes = [after - before for before, after in zip(base_holdout, holdout, strict=True)]
    shift = math.fsum(changes) / len(changes) if changes else 0.0
    values = tuple(min(base + shift, own) for base, own in zip(base_forget, forget, strict=True))
    return RowTargets(values, "base and holdout" if changes else "base", shift, len(changes))


def row_goals(
    origin: BaseScores | None,
    sets: UnlearnSets,
    own: Sequence[float],
    score: Callable[[Sequence[Encoded]], tuple[Teacher, Tensor]],
) -> tuple[RowTargets, Calibrated | None]:
    """The targets of the forget rows, and the base with the style of the other rows if held-out rows show it.

    Args:
        origin: scores of the model before it learned the forget rows; None if there is none at hand.
        sets: the rows.
        own: (n,) mean log-prob per answer token of each forget row under the model to unlearn, in nats.
        score: the most likely tokens at rows' answers under the model to unlearn, and each row's mean log-prob per token.

    Returns:
        The targets; and the calibrated base (``train.calibration``), of whose log-probs they are the means, or None.

    Raises:
        RecipeError: there is neither a base nor a holdout row.
    """
    if origin is None:
        return targets_from_holdout(own, score(sets.holdout)[1].tolist()), None
    held = unseen(sets)
    scored, means = score(held)
    plain = targets_from_base(origin.forget.tolist(), own, origin.holdout.tolist(), means.tolist())
    changes = measure_changes(origin.holdout_top, scored, style_levels(held, sets.retain)) if sets.retain else None
    if changes is None:
        return plain, None
    found = calibrated(origin.top, style_levels(sets.forget, sets.retain), changes)
    values = tuple(min(mean, known) for mean, known in zip(found.means.tolist(), own, strict=True))
    return replace(plain, values=values), found


def targets_from_holdout(forget: Sequence[float], holdout: Sequence[float]) -> RowTargets:
    """Targets without a base: the row with the r-th lowest log-prob gets the holdout's quantile ``(r − ½) / n``.

    The distribution is that of rows the model never saw; which row gets which value is a guess.

    Args:
        forget: (n,) mean log-prob per answer token of each forget row, in nats.
        holdout: (m,) the same of rows that the model was never trained on.

    Returns:
        (n,) targets. Forget rows (−1, −2) and holdout rows (−6, −5, −4, −3) give (−3.5, −5.5).

    Raises:
        RecipeError: there are no holdout rows.
        ValueError: a number is not finite.
    """
    if not holdout:
        raise RecipeError(
            "row targets need the model before fine-tuning or rows that it never saw: set base, or add data.holdout, or set "
            "stop.forget_target to a probability"
        )
    _refuse_not_finite(forget, holdout)
    known = sorted(holdout)
    values = [0.0] * len(forget)
    for rank, place in enumerate(sorted(range(len(forget)), key=forget.__getitem__)):
        values[place] = min(_quantile(known, (rank + 0.5) / len(forget)), forget[place])
    return RowTargets(tuple(values), "holdout", 0.0, len(holdout))


def _quantile(known: Sequence[float], share: float) -> float:
    """The quantile of a sorted sample, linear between the sample's values at (k − ½) / m."""
    place = min(max(share * len(known) - 0.5, 0.0), len(known) - 1.0)
    low = math.floor(place)
    high = min(low + 1, len(known) - 1)
    return known[low] + (place - low) * (known[high] - known[low])


def _refuse_not_finite(*samples: Sequence[float]) -> None:
    if not all(math.isfinite(value) for sample in samples for value in sample):
        raise ValueError("a log-prob is NaN or infinite, so there is no row target; check the model and its base")
