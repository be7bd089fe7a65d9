"""PrivLeak: how far the Min-K attack's success lies from what it is on a model that never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregate import interval
from llm_forget.evaluation.aggregates.auc import auc_of
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Floats, as_floats

# Beyond this the percentage is one of a small number, and says little of how much leaks.
_LARGE = 100.0


@dataclass(frozen=True)
class PrivLeak:
    """PrivLeak of one model against the oracle.

    Attributes:
        value: per cent, in [−100, ∞); near 0 when the model leaks what the oracle does. Below: members still stand out.
            Above: they stand out the other way. NaN when a class has no score, or the oracle's AUC is 1.
        n: members that both models could be scored on.
        n_nonmembers: non-members of the same kind.
        n_nan: rows that at least one of the models could not be scored on.
        low: lower end of the 95 % interval, a bootstrap over the rows, of both models together.
        high: its upper end.
        auc: of the model, on these rows.
        oracle_auc: of the oracle, on these rows.
        note: what to know when reading the value, empty when there is nothing.
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
    bounds: ClassVar[tuple[float, float]] = (-100.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"


def privleak_of(auc: npt.ArrayLike, oracle_auc: npt.ArrayLike | None) -> Floats:
    """``((1 − AUC) − (1 − AUC_oracle)) / (1 − AUC_oracle) · 100``, with members scoring high.

    Args:
        auc: (…) of the model, in [0, 1].
        oracle_auc: (…) of the oracle, in [0, 1].

    Returns:
        (…) per cent; NaN where the oracle's AUC is 1, for there is nothing to divide by. AUC 0.9 against 0.5 is −80,
        and 0.2 against 0.5 is 60.

    Raises:
        UserError: there is no oracle. Taking ½ for it would be a guess: on short or easy rows an oracle's AUC is often
            far from ½.

    Source: Shi et al. 2024, arXiv:2407.06460, section 3 (there by the AUC of non-members, 1 − AUC).
    """
    if oracle_auc is None:
        raise UserError(
            "PrivLeak needs the oracle's AUC, and none was given; measure a model that never saw the forget set with the "
            "same suite and give its results as `oracle`"
        )
    own, oracle = 1.0 - as_floats(auc), 1.0 - as_floats(oracle_auc)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(oracle > 0, 100.0 * (own - oracle) / oracle, np.nan)


def privleak(members: Sequence[npt.ArrayLike], nonmembers: Sequence[npt.ArrayLike], *, seed: int = 0) -> PrivLeak:
    """PrivLeak with its interval, from the Min-K scores of both models on the same rows.

    Args:
        members: (E,) of the model and (E,) of the oracle, in one order of the rows.
        nonmembers: (E',) of the model and (E',) of the oracle.
        seed: of the bootstrap, which takes the same rows for both models.
    """
    own, oracle, missing = _both(members)
    other, oracle_other, more = _both(nonmembers)
    if len(own) == 0 or len(other) == 0:
        note = "not computed: no row of one class could be scored"
        return PrivLeak(np.nan, len(own), len(other), missing + more, np.nan, np.nan, np.nan, np.nan, note)
    found, expected = auc_of(own, other), auc_of(oracle, oracle_other)
    value = float(privleak_of(found, expected))
    low, high = interval(
        {"members": len(own), "nonmembers": len(other)},
        lambda rows: privleak_of(
            auc_of(own[rows["members"]], other[rows["nonmembers"]]),
            auc_of(oracle[rows["members"]], oracle_other[rows["nonmembers"]]),
        ),
        seed=seed,
    )
    if np.isnan(value):
        low = high = np.nan
    note = _note(value)
    return PrivLeak(value, len(own), len(other), missing + more, low, high, float(found), float(expected), note)


def _both(scores: Sequence[npt.ArrayLike]) -> tuple[Floats, Floats, int]:
    """The rows that both models were scored on, and how many were not."""
    own, oracle = (as_floats(one) for one in scores)
    if own.shape != oracle.shape:
        raise UserError(
            f"PrivLeak compares the same rows; {len(own)} of the model and {len(oracle)} of the oracle were given"
        )
    good = ~(np.isnan(own) | np.isnan(oracle))
    return own[good], oracle[good], int((~good).sum())


def _note(value: float) -> str:
    if np.isnan(value):
        return "not computed: the oracle's AUC is 1, and the formula divides by 1 − AUC"
    if value > _LARGE:
        return "above 100: this percentage has no upper bound, so read the two AUCs instead"
    return ""
