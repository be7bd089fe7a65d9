"""KL to the target on running text: the change of the model on text that is unrelated to the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.evaluation.intervals import influence_interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import Ints, as_floats


@dataclass(frozen=True)
class TextKl:
    """KL to the target on running text.

    Attributes:
        value: mean over tokens in nats, in [0, ∞); NaN if no window could be scored.
        n: number of compared tokens.
        windows: number of scored windows.
        n_nan: number of windows that could not be scored.
        low: lower end of the 95 % interval over windows.
        high: upper end of the interval.
    """

    value: float
    n: int
    windows: int
    n_nan: int
    low: float
    high: float

    paper: ClassVar[str] = "Kullback and Leibler 1951"
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"


def text_kl(token_kls: npt.ArrayLike, offsets: Ints) -> TextKl:
    """Average the KL over a text's tokens, with an interval over its windows.

    Args:
        token_kls: (N,) KL at each token, in nats.
        offsets: (W + 1,) window i has the tokens ``offsets[i]:offsets[i + 1]``.

    Returns:
        The mean over tokens, not over windows: for windows (1) and (3, 3, 3) it is 2.5.
    """
    values, lengths = as_floats(token_kls), np.diff(offsets)
    sums = np.array([values[start:stop].sum() for start, stop in pairwise(offsets)])
    good = (lengths > 0) & ~np.isnan(sums)
    n_nan = int((~good).sum())
    sums, lengths = sums[good], lengths[good]
    if len(sums) == 0:
        return TextKl(np.nan, 0, 0, n_nan, np.nan, np.nan)
    mean = float(sums.sum() / lengths.sum())
    low, high = influence_interval(mean, [(sums - mean * lengths) / lengths.mean()], bounds=(0, None))
    return TextKl(mean, int(lengths.sum()), len(sums), n_nan, low, high)
