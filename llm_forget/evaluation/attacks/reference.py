"""Reference attack: rows that this model finds more likely than a reference model were probably trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats, as_floats


def reference_scores(mean_logps: npt.ArrayLike, reference_mean_logps: npt.ArrayLike) -> Floats:
    """Compute ``mean log p − mean log p_reference``, the log-likelihood ratio per token.

    Args:
        mean_logps: (E,) for the model, in nats.
        reference_mean_logps: (E,) for the reference model, in nats.

    Returns:
        (E,); NaN if either is NaN or both are −∞. For −1 and −3 it is 2.

    Source: Carlini et al. 2021, arXiv:2012.07805, section 5.2 (there a ratio of perplexities); Mireshghallah et al.
    2022, arXiv:2203.03929.
    """
    with np.errstate(invalid="ignore"):  # −∞ − (−∞) gives NaN, which is counted as not scored
        return as_floats(mean_logps) - as_floats(reference_mean_logps)


@dataclass(frozen=True)
class Reference:
    """Mean log-prob minus the reference model's mean log-prob."""

    paper: ClassVar[str] = "Carlini et al. 2021, arXiv:2012.07805; Mireshghallah et al. 2022, arXiv:2203.03929"
    needs: ClassVar[tuple[Input, ...]] = ("tokens", "reference_mean_logps")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "reference"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) log-likelihood ratio per token."""
        reference = (
            np.full(len(rows.tokens), np.nan) if rows.reference_mean_logps is None else rows.reference_mean_logps
        )
        return reference_scores(rows.tokens.mean_logps(), reference)
