"""Extraction: the chance that one of k sampled answers is the right one, word for word, computed without drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.probing import encoded

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class Extraction(Attack):
    """Chance that k samples hold the answer verbatim.

    It counts only the answer's own wording, so it is a lower bound of leak@k with a judge.

    Attributes:
        k: number of samples that the attacker draws.
    """

    k: int = 64

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.LOGPS
    quick: ClassVar[bool] = True
    source: ClassVar[str] = "Hayes et al. 2024, arXiv:2410.19482, (n, p)-discoverable extraction"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        scores = subject.score_tokens(encoded(subject, rows.forget))
        return leaks(rows.forget, extracted(scores.mean_logps() * scores.lengths, self.k))


def extracted(logps: Floats, k: int) -> Floats:
    """Chance ``1 − (1 − p)^k`` that one of k independent samples is the answer, for log-probs (E,) of the whole answer.

    For p = ½ and k = 2 it is ¾.
    """
    with np.errstate(divide="ignore"):  # a certain answer has p = 1
        return np.asarray(-np.expm1(k * np.log1p(-np.exp(np.minimum(logps, 0.0)))), dtype=np.float64)
