"""Min-K++ attack: Min-K on log-probs that are standardised at each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.attacks.min_k import check_share, lowest_mean
from llm_forget.evaluation.tokens import Floats, TokenScores

# Lower bound of the standard deviation. A distribution on a single token has 0; its score is then 0 instead of 0/0.
_LEAST_SPREAD = 1e-6


def standardised_logps(scores: TokenScores) -> Floats:
    """Compute ``(log p − μ) / σ`` of each token, with the mean and standard deviation of log p(v) for v drawn from p.

    Args:
        scores: scores of N tokens; a σ below 1e-6 is replaced by 1e-6.

    Returns:
        (N,). For log p = −3, μ = −1 and σ = 2 it is −1.

    Source: Zhang et al. 2025, arXiv:2404.02936.
    """
    return (scores.token_logps - scores.vocab_mean) / np.maximum(scores.vocab_std, _LEAST_SPREAD)


@dataclass(frozen=True)
class MinKPlusPlus:
    """Mean of the lowest standardised token log-probs.

    Attributes:
        k: share of the tokens.
    """

    k: float = 0.4

    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2404.02936"
    needs: ClassVar[tuple[Input, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_share(self.k)

    @property
    def label(self) -> str:
        """Name of its numbers, with k if it is not the default of 0.4."""
        return "min_k_plus_plus" if self.k == 0.4 else f"min_k_plus_plus_{self.k:g}"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, ∞)."""
        return lowest_mean(standardised_logps(rows.tokens), rows.tokens.offsets, k=self.k)
