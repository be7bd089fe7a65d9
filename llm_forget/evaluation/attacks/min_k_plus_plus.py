"""Min-K++ attack: Min-K on log-probs measured against what the model expected at each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.attacks.min_k import check_share, lowest_mean
from llm_forget.evaluation.tokens import Floats, TokenScores

# A distribution on one token has no spread: its own token is 0 above the mean, not 0/0.
_LEAST_SPREAD = 1e-6


def standardised_logps(scores: TokenScores) -> Floats:
    """``(log p − μ) / σ`` of each token, with mean and standard deviation of log p(v) over the vocabulary under p itself.

    Args:
        scores: N tokens; a spread below 1e-6 counts as 1e-6.

    Returns:
        (N,). For log p = −3, μ = −1 and σ = 2 it is −1.

    Source: Zhang et al. 2025, arXiv:2404.02936.
    """
    return (scores.token_logps - scores.vocab_mean) / np.maximum(scores.vocab_std, _LEAST_SPREAD)


@dataclass(frozen=True)
class MinKPlusPlus:
    """Mean of the lowest standardised token log-probs.

    Attributes:
        k: which share of the tokens.
    """

    k: float = 0.4

    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2404.02936"
    needs: ClassVar[tuple[Input, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_share(self.k)

    @property
    def label(self) -> str:
        """Name of its numbers, k included where it is not the usual 0.4."""
        return "min_k_plus_plus" if self.k == 0.4 else f"min_k_plus_plus_{self.k:g}"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) unbounded on both sides."""
        return lowest_mean(standardised_logps(rows.tokens), rows.tokens.offsets, k=self.k)
