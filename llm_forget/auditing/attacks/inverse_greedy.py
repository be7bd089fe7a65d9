"""Inverse greedy: take the least likely token at each step. Training that pushes an answer down leaves it at the bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.probing import at_token, encoded, read_logits
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from torch import Tensor

    from llm_forget.auditing.subject import Subject

# Factors of the logits. −1 turns the distribution over; −4 nearly always takes the least likely token.
FACTORS = {"plain": 1.0, "inverse": -1.0, "least likely": -4.0}


@dataclass(frozen=True)
class InverseGreedy(Attack):
    """Probability of the answer under ``softmax(c · logits)``, for the c that serves the attacker best."""

    group: ClassVar[Group] = "inside"
    needs: ClassVar[Access] = Access.WEIGHTS
    quick: ClassVar[bool] = True
    source: ClassVar[str] = "openreview.net/forum?id=hPruSo1bEE, inverse decoding recovers personal data"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row, in one pass for all factors."""

        def read(logits: Tensor, ids: Tensor) -> list[Tensor]:
            return [at_token(factor * logits, ids) for factor in FACTORS.values()]

        found = dict(zip(FACTORS, read_logits(subject, encoded(subject, rows.forget), read), strict=True))
        return tuned(rows, budget, found, lambda logps, asked: np.exp(logps[list(asked)]))
