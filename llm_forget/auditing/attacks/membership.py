"""Tell rows that were trained on from rows that were not, by their log-probs; the attacker picks the statistic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.evaluation.attacks import Attack as Statistic
from llm_forget.evaluation.attacks import AttackRows
from llm_forget.evaluation.attacks.loss import Loss
from llm_forget.evaluation.attacks.min_k import MinK
from llm_forget.evaluation.attacks.min_k_plus_plus import MinKPlusPlus
from llm_forget.evaluation.attacks.zlib_ratio import ZlibRatio
from llm_forget.evaluation.intervals import placements

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject

_STATISTICS: tuple[Statistic, ...] = (Loss(), MinKPlusPlus(), MinK(), ZlibRatio())


@dataclass(frozen=True)
class Membership(Attack):
    """The membership statistic that separates the attacker's own rows best, of the first ``budget.tries``."""

    group: ClassVar[Group] = "statistics"
    needs: ClassVar[Access] = Access.LOGPS
    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("holdout",)
    quick: ClassVar[bool] = True
    source: ClassVar[str] = "Shi et al. 2024, arXiv:2310.16789; Zhang et al. 2025, arXiv:2404.02936"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Choose on the attacker's own rows and half of the holdout, and score all rows."""
        members = AttackRows(subject.score(rows.forget), [row.answer for row in rows.forget])
        others = AttackRows(subject.score(rows.holdout), [row.answer for row in rows.holdout])
        own, known = len(rows.held), max(len(rows.holdout) // 2, 1)

        def separates(statistic: Statistic) -> float:
            inside, outside = statistic.row_scores(members)[:own], statistic.row_scores(others)[:known]
            return float(placements(np.nan_to_num(inside), np.nan_to_num(outside))[0].mean())

        best = max(_STATISTICS[: max(budget.tries, 1)], key=separates)
        return leaks(rows.forget, best.row_scores(members), best.row_scores(others), statistic=best.label)
