"""Perplexity on running text: what unlearning did to plain language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.evaluation.aggregate import interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.tokens import TokenScores


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text.

    Attributes:
        value: exp of the mean cross-entropy per token, in [1, ∞); NaN when no window could be scored.
        n: tokens that were scored.
        windows: windows that they lie in.
        n_nan: windows that could not be scored.
        low: lower end of the 95 % interval, a bootstrap over windows.
        high: its upper end.
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
    """Cut a text into overlapping windows of which each token is scored in exactly one, with context before it.

    Args:
        token_ids: the text, without what the tokenizer puts before it.
        window: tokens a window, ``begin`` included.
        stride: tokens that each window after the first scores; the rest of it is context.
        begin: what stands before every window and is never scored: a BOS token, for tokenizers that write one.

    Returns:
        Windows whose answer is what they score. Without ``begin`` the very first token is not scored, since nothing
        predicts it.

    Raises:
        UserError: sizes that leave no room, or a text of fewer than two tokens.
    """
    room = window - len(begin)
    most = room if begin else room - 1  # something has to stand before the first token that a window scores
    if not 1 <= stride <= most:
        raise UserError(
            f"perplexity windows of {window} tokens with stride {stride} cannot be: the stride is at least 1, and at "
            f"least one token of a window is context, so here at most {max(most, 0)}; make the window longer"
        )
    context = tuple(begin)
    scored = 0 if context else 1
    if len(token_ids) <= scored:
        raise UserError(f"the text for perplexity has {len(token_ids)} tokens; at least {scored + 1} are needed")
    windows = []
    stop = min(room, len(token_ids))
    while scored < len(token_ids):
        start = max(stop - room, 0)
        ids = context + tuple(token_ids[start:stop])
        windows.append(Encoded(f"tokens {scored} to {stop}", ids, len(context) + scored - start))
        scored, stop = stop, min(stop + stride, len(token_ids))
    return windows


def perplexity(scores: TokenScores, *, seed: int = 0) -> Perplexity:
    """``exp(−Σ log p / tokens)`` over the windows that could be scored.

    Args:
        scores: one row a window, as of ``score_encoded`` on ``sliding_windows``.
        seed: of the bootstrap.

    Returns:
        The perplexity; of a uniform model over V tokens it is V.
    """
    sums, lengths = scores.mean_logps() * scores.lengths, scores.lengths
    good = ~np.isnan(sums)
    n_nan = int((~good).sum())
    sums, lengths = sums[good], lengths[good]
    if len(sums) == 0:
        return Perplexity(np.nan, 0, 0, n_nan, np.nan, np.nan)
    with np.errstate(over="ignore"):  # ∞ is the right answer for a model that rules the text out
        value = float(np.exp(-sums.sum() / lengths.sum()))
        low, high = interval(
            {"windows": len(sums)},
            lambda rows: np.exp(-sums[rows["windows"]].sum(-1) / lengths[rows["windows"]].sum(-1)),
            seed=seed,
        )
    return Perplexity(value, int(lengths.sum()), len(sums), n_nan, low, high)
