"""Min-K attack: unseen text has a few very unlikely tokens; text from the training data does not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats, Ints, as_floats


def lowest_mean(values: npt.ArrayLike, offsets: Ints, *, k: float) -> Floats:
    """Average the lowest share k of each row's values: ``max(1, ⌊k·n⌋)`` of n values.

    Args:
        values: (N,) one value per token, rows concatenated.
        offsets: (E + 1,) row i has the values ``offsets[i]:offsets[i + 1]``.
        k: share, in (0, 1].

    Returns:
        (E,); NaN for a row that is empty or has a NaN. For −1, −5, −2, −3, −4 and k = 0.4, the lowest two values are −5 and
        −4, and the mean is −4.5.

    Source: Shi et al. 2024, arXiv:2310.16789.
    """
    values = as_floats(values)
    found = np.full(len(offsets) - 1, np.nan)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        if stop > start:
            # the small constant corrects rounding: 0.29 · 100 is 28.999999999999996
            count = max(1, int(k * (stop - start) + 1e-9))
            found[index] = np.sort(values[start:stop])[:count].mean()
            if np.isnan(values[start:stop]).any():  # sorting puts NaN last, so the mean above can miss it
                found[index] = np.nan
    return found


def check_share(k: float) -> None:
    """Check that k is a share.

    Raises:
        ValueError: k is not in (0, 1].
    """
    if not 0 < k <= 1:
        raise ValueError(f"k is {k}; give the share of the lowest tokens, above 0 and at most 1, for example 0.4")


@dataclass(frozen=True)
class MinK:
    """Mean of the lowest token log-probs.

    Attributes:
        k: share of the tokens.
    """

    k: float = 0.4

    paper: ClassVar[str] = "Shi et al. 2024, arXiv:2310.16789"
    needs: ClassVar[tuple[Input, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_share(self.k)

    @property
    def label(self) -> str:
        """Name of its numbers, with k if it is not the default of 0.4."""
        return "min_k" if self.k == 0.4 else f"min_k_{self.k:g}"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, 0]."""
        return lowest_mean(rows.tokens.token_logps, rows.tokens.offsets, k=self.k)
