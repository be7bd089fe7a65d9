"""Perplexity on running text: the effect of unlearning on language modelling in general."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.evaluation.intervals import influence_interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import TokenScores


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text.

    Attributes:
        value: exp of the mean cross-entropy per token, in [1, ∞); NaN if no window could be scored.
        n: number of scored tokens.
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

    paper: ClassVar[str] = "Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition tasks"
    bounds: ClassVar[tuple[float, float]] = (1.0, float("inf"))
    forgotten: ClassVar[Direction] = "none"


def sliding_windows(
    token_ids: Sequence[int], *, window: int = 512, stride: int = 256, begin: Sequence[int] = ()
) -> list[Encoded]:
    """Split a text into overlapping windows. Each token is scored in exactly one window, with context before it.

    Args:
        token_ids: the text, without the tokens that the tokenizer adds before it.
        window: tokens per window, including ``begin``.
        stride: number of tokens that each window after the first scores; its other tokens are context.
        begin: prefix of every window, never scored: the BOS token, if the tokenizer adds one.

    Returns:
        Windows; the answer of each is its scored tokens. Without ``begin`` the first token of the text is not scored,
        because there is no context to predict it from.

    Raises:
        UserError: the stride does not fit the window, or the text has fewer than two tokens.
    """
    room = window - len(begin)
    most = room if begin else room - 1  # the first scored token of a window needs context before it
    if not 1 <= stride <= most:
        raise UserError(
            f"perplexity has window {window} and stride {stride}; the stride must be at least 1 and leave at least one token "
            f"of context, so here at most {max(most, 0)}: reduce stride, or increase window"
        )
    context = tuple(begin)
    scored = 0 if context else 1
    if len(token_ids) <= scored:
        raise UserError(f"the text for perplexity has {len(token_ids)} tokens; give one with at least {scored + 1}")
    windows = []
    stop = min(room, len(token_ids))
    while scored < len(token_ids):
        start = max(stop - room, 0)
        ids = context + tuple(token_ids[start:stop])
        windows.append(Encoded(f"tokens {scored} to {stop}", ids, len(context) + scored - start))
        scored, stop = stop, min(stop + stride, len(token_ids))
    return windows


def perplexity(scores: TokenScores) -> Perplexity:
    """Compute ``exp(−Σ log p / tokens)`` over the windows that could be scored.

    Args:
        scores: one row per window of ``sliding_windows``, as ``score_encoded`` returns them.

    Returns:
        The perplexity with its interval. For a uniform model over V tokens it is V.
    """
    sums, lengths = scores.mean_logps() * scores.lengths, scores.lengths
    good = ~np.isnan(sums)
    n_nan = int((~good).sum())
    sums, lengths = sums[good], lengths[good]
    if len(sums) == 0:
        return Perplexity(np.nan, 0, 0, n_nan, np.nan, np.nan)
    with np.errstate(over="ignore"):  # ∞ is correct for a model that gives the text probability 0
        mean = -float(sums.sum() / lengths.sum())
        value = float(np.exp(mean))
        low, high = np.exp(influence_interval(mean, [-(sums + mean * lengths) / lengths.mean()]))
    return Perplexity(value, int(lengths.sum()), len(sums), n_nan, float(low), float(high))
