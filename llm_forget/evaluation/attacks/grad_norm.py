"""Gradient-norm attack: rows that a model was trained on have small gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class GradNorm:
    """Minus the norm of the gradient of the answer's cross-entropy.

    It needs one backward pass per row, so it runs only on request.

    Attributes:
        parameters: the weights of the gradient; see ``gradients.gradient_norms``.
    """

    parameters: str = "all"

    paper: ClassVar[str] = "Nasr et al. 2019, arXiv:1812.00910; Wang et al. 2024, arXiv:2402.17012"
    needs: ClassVar[tuple[Input, ...]] = ("gradient_norms",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "grad_norm"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, 0]."""
        return np.full(len(rows.tokens), np.nan) if rows.gradient_norms is None else -rows.gradient_norms
