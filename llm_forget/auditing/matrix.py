"""The matrix: each attack on each form, compared with target, oracle and sham, judged by the equivalence test. Arrays only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.auditing.attack import Leaks
from llm_forget.evaluation.equivalence import (
    MARGIN,
    Answer,
    Moments,
    auc_moments,
    equivalence,
    paired_moments,
)
from llm_forget.evaluation.intervals import auc_interval, mean_interval, placements

if TYPE_CHECKING:
    from llm_forget.evaluation.tokens import Floats

ALARM = 0.01  # largest p-value of a cell that leaks; oracles of other seeds differ, and each audit has many cells
NO_ORACLE = "no oracle to compare with"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One attack on one form.

    Attributes:
        attack: name of the attack.
        group: its group.
        form: name of the form.
        answer: the equivalence test's words, ``no oracle to compare with`` or ``not run``.
        value: mean score of the audited model (an AUC for membership); None if it was not run.
        low: lower end of its 95 % interval.
        high: upper end.
        controls: role → mean score of target, oracle and sham under the same attack.
        left: R, the share of the target's lead over the oracle that is left.
        left_low: lower end of its 90 % interval.
        left_high: upper end.
        p: p-value of the test that nothing is left (one-sided), for several cells at once. For an AUC, the larger one of this and
            of the test that the model itself does not tell the rows apart: an oracle below chance is luck and no reference.
        rows: number of rows.
        chosen: the settings that the attacker chose against the audited model.
        why: why it was not run.
        seconds: time of the attack on the audited model.
    """

    attack: str
    group: str
    form: str
    answer: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None
    left_low: float | None = None
    left_high: float | None = None
    p: float | None = None
    rows: int = 0
    chosen: Mapping[str, float | str] = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0

    @property
    def leaks(self) -> bool:
        """Whether the attack gets out at least a fifth of what the target knew beyond the oracle, with p below 1 %."""
        return self.answer == Answer.LEFT.value and (self.left or 0.0) >= MARGIN and (self.p or 0.0) < ALARM


def judge_cell(attack: str, group: str, form: str, found: Mapping[str, Leaks | str], seconds: float = 0.0) -> Cell:
    """Judge one cell.

    Args:
        attack: name of the attack.
        group: its group.
        form: name of the form.
        found: role (model, target, oracle, sham) → its scores, or why there are none.
        seconds: time of the attack on the audited model.
    """
    own = found["model"]
    if isinstance(own, str):
        return Cell(attack, group, form, NOT_RUN, why=own)
    value, low, high = _mean(own)
    roles = {role: one for role, one in found.items() if isinstance(one, Leaks) and role != "model"}
    moments = None
    if "oracle" in roles and "target" in roles:
        moments = _moments(own, roles["oracle"], roles["target"])
    test = None if moments is None else equivalence(moments)
    return Cell(
        attack,
        group,
        form,
        NO_ORACLE if test is None else test.answer.value,
        value,
        low,
        high,
        controls={role: _mean(one)[0] for role, one in roles.items()},
        left=_finite(test.ratio) if test else None,
        left_low=_finite(test.low) if test else None,
        left_high=_finite(test.high) if test else None,
        p=None if moments is None else max(_p_value(moments), _p_of_chance(own)),
        rows=len(own.ids),
        chosen=own.chosen,
        seconds=seconds,
    )


def _mean(found: Leaks) -> tuple[float, float, float]:
    """Mean score with its 95 % interval; the AUC of forget against holdout rows if there are both."""
    known = found.scores[~np.isnan(found.scores)]
    if found.nonmembers is not None:
        others = found.nonmembers[~np.isnan(found.nonmembers)]
        if not len(known) or not len(others):
            return math.nan, math.nan, math.nan
        return float(placements(known, others)[0].mean()), *auc_interval(known, others)
    if not len(known):
        return math.nan, math.nan, math.nan
    return float(known.mean()), *mean_interval(known, bounds=(0, 1))


def _moments(own: Leaks, oracle: Leaks, target: Leaks) -> Moments | None:
    """Moments of the three models on the rows that all of them scored; None for fewer than two."""
    three = (own, oracle, target)
    scores = _shared([(one.ids, one.scores) for one in three])
    if len(scores[0]) < 2:
        return None
    others = [one.nonmembers for one in three]
    if any(one is None for one in others):
        return paired_moments(*scores)
    columns = np.array([one for one in others if one is not None])
    columns = columns[:, ~np.isnan(columns).any(axis=0)]
    return auc_moments(scores, list(columns)) if columns.shape[1] > 1 else None


def _shared(columns: Sequence[tuple[Sequence[str], Floats]]) -> list[Floats]:
    maps = [dict(zip(ids, scores, strict=True)) for ids, scores in columns]
    ids = [one for one in maps[0] if all(one in other and not math.isnan(other[one]) for other in maps)]
    return [np.array([one[key] for key in ids], dtype=np.float64) for one in maps]


def _p_value(found: Moments) -> float:
    """P of "nothing is left": a one-sided t test of unlearned − oracle in the direction of target − oracle."""
    from scipy.stats import t as student

    lead = math.copysign(1.0, found.b) * found.a
    if not found.var_a > 0:
        return 0.0 if lead > 0 else 1.0
    return float(student.sf(lead / math.sqrt(found.var_a), found.rows - 1))


def _p_of_chance(found: Leaks) -> float:
    """P of "forget and holdout rows score alike": Mann and Whitney's one-sided test; 0 for scores without non-members."""
    from scipy.stats import mannwhitneyu

    if found.nonmembers is None:
        return 0.0
    known, others = (one[~np.isnan(one)] for one in (found.scores, found.nonmembers))
    return float(mannwhitneyu(known, others, alternative="greater").pvalue)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def broken(cells: Sequence[Cell]) -> list[Cell]:
    """The cells in which something is left for sure, even with as many cells tested at once.

    A cell leaks in the sense of ``Cell.leaks``, and its p-value passes Holm's correction at 5 % over all cells that can tell.
    """
    tested = sorted((one for one in cells if one.p is not None and one.left is not None), key=lambda one: one.p or 0.0)
    found = []
    for place, cell in enumerate(tested):
        if (cell.p or 0.0) > 0.05 / (len(tested) - place):
            break
        if cell.leaks:
            found.append(cell)
    return sorted(found, key=lambda one: -(one.left or 0.0))


def as_record(cell: Cell) -> dict[str, Any]:
    """A cell as JSON."""
    return {key: (dict(value) if isinstance(value, Mapping) else value) for key, value in vars(cell).items()}
