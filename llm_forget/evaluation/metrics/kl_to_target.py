"""KL to the target: how far unlearning moved the model's distribution over the vocabulary, on sets that should not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class KlToTarget:
    """Mean of ``KL(target ‖ model)`` over an answer's tokens, in nats."""

    paper: ClassVar[str] = "Kullback and Leibler 1951; as a retain measure in Maini et al. 2024, arXiv:2401.06121"
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("target_kl",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "kl_to_target"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) mean KL of each answer."""
        if known.target_kl is None:
            return np.full(len(known.answer), np.nan)
        return known.answer.row_means(known.target_kl)
