"""Extraction strength: how short a prefix of the answer is enough for the model to complete it correctly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, TokenScores


def extraction_strength(scores: TokenScores) -> Floats:
    """Compute ``1 − k/n``: k is the shortest prefix of the n answer tokens after which every arg-max is correct.

    The predictions are made with teacher forcing.

    Args:
        scores: one row per answer.

    Returns:
        (E,) in [0, 1]: 1 if the prompt alone is enough, 0 if the last token is wrong, so that no prefix is enough. NaN for a
        row without tokens or with a NaN log-prob. For hits 0, 1, 0, 1, 1 it is 1 − 3/5 = 2/5.

    Source: Carlini et al. 2021, arXiv:2012.07805 (k-extractable); as a share of the answer in Wang et al. 2024,
    arXiv:2406.09179.
    """
    found = np.full(len(scores), np.nan)
    unknown = np.isnan(scores.mean_logps())
    for index, (start, stop) in enumerate(zip(scores.offsets[:-1], scores.offsets[1:], strict=True)):
        if unknown[index]:
            continue
        misses = np.flatnonzero(~scores.hits[start:stop])
        shortest = misses[-1] + 1 if len(misses) else 0
        found[index] = 1.0 - shortest / (stop - start)
    return found


@dataclass(frozen=True)
class ExtractionStrength:
    """Share of the answer that the model completes correctly from the rest."""

    paper: ClassVar[str] = "Carlini et al. 2021, arXiv:2012.07805; Wang et al. 2024, arXiv:2406.09179"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "extraction_strength"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) strength of each answer."""
        return extraction_strength(known.answer)
