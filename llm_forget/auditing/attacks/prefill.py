"""Prefill: put the first n tokens of the answer into the model's mouth, n = 0 … 8, and look whether it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.probing import encoded

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats, TokenScores


@dataclass(frozen=True)
class Prefill(Attack):
    """Probability per token of the rest of the answer, averaged over n.

    Attributes:
        most: largest number of given tokens.
    """

    most: int = 8

    group: ClassVar[Group] = "text"
    needs: ClassVar[Access] = Access.LOGPS
    quick: ClassVar[bool] = True
    source: ClassVar[str] = "Carlini et al. 2023, arXiv:2202.07646; Andriushchenko et al. 2024, arXiv:2404.02151"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row, without a pass of its own: a token's log-prob already depends on all tokens before it."""
        scores = subject.score_tokens(encoded(subject, rows.forget))
        curve = np.stack([continued(scores, given) for given in range(self.most + 1)])
        known = np.isfinite(curve)
        return leaks(rows.forget, np.where(known, curve, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))


def continued(scores: TokenScores, given: int) -> Floats:
    """(E,) probability per token of the rest of each answer after its first ``given`` tokens; NaN if nothing is left.

    For the log-probs ln ¼, ln ½, ln ½ and ``given`` 1 it is ½.
    """
    found = np.full(len(scores), np.nan)
    for row in range(len(scores)):
        rest = scores.token_logps[scores.offsets[row] + given : scores.offsets[row + 1]]
        if len(rest):
            found[row] = np.exp(rest.mean())
    return found
