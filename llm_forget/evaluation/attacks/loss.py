"""Loss attack: rows that a model was trained on have a low loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class Loss:
    """Mean log-prob of the answer: minus its cross-entropy."""

    paper: ClassVar[str] = "Yeom et al. 2018, arXiv:1709.01604"
    needs: ClassVar[tuple[Input, ...]] = ("tokens",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "loss"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, 0]; NaN for a row without tokens."""
        return rows.tokens.mean_logps()
