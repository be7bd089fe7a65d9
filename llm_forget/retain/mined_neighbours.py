"""Cross-entropy of the retain answers whose questions are worded most like forget questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import check_number
from llm_forget.retain import RetainTerm
from llm_forget.retain.nll import nll_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class MinedNeighbours(RetainTerm):
    """A second retain term on the rows that unlearning harms most, found by BM25.

    It pays off with a large retain set, of which a run reads each row rarely. Rows that hold a name of the forget rows are left
    out.

    Attributes:
        per_question: number of retain rows for each forget row.
    """

    per_question: int = 4

    rows: ClassVar[str] = "mined"
    paper: ClassVar[str] = "after Chang and Lee 2025, arXiv:2502.11441"

    def __post_init__(self) -> None:
        check_number("mined_neighbours", "per_question", self.per_question, at_least=1)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) cross-entropy of each answer."""
        return nll_loss(retain.token_logps, retain.mask)
