"""Score rows with a model behind a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.tokens import TokenScores
from llm_forget.model.batching import answer_offsets
from llm_forget.model.served import ServedModel


def score_served(
    served: ServedModel,
    rows: Sequence[Encoded],
    *,
    vocabulary: int,
    progress: Callable[[int], None] | None = None,
) -> TokenScores:
    """Score the answers of rows, one request per row.

    Args:
        served: the model.
        rows: the encoded answers; may be empty.
        vocabulary: number of its tokens.
        progress: called with 1 after each row.

    Returns:
        The scores in the order of ``rows``. The moments of the vocabulary are those of ``listed_moments``, so they are
        approximate, or NaN if the server lists no other tokens. Then no token counts as a hit either.

    Raises:
        UserError: the server gives no log-probs of prompts, or cannot be reached.
    """
    offsets = answer_offsets(rows)
    whole = served.places([tuple(row.input_ids) for row in rows], progress)
    # the first token of a row has no prediction, and no place
    own = [
        place
        for row, places in zip(rows, whole, strict=True)
        for place in places[max(row.prompt_length, 1) - 1 : len(row.input_ids) - 1]
    ]
    moments = np.array([listed_moments(one.listed, vocabulary) for one in own], dtype=np.float64).reshape(-1, 2)
    logps = np.array([one.logp for one in own], dtype=np.float64)
    hits = np.array([one.hit for one in own], dtype=np.bool_)
    return TokenScores(logps, hits, moments[:, 0], moments[:, 1], offsets)


def listed_moments(listed: Sequence[float], vocabulary: int) -> tuple[float, float]:
    """Mean and standard deviation of log p(v) for v drawn from p, from the likeliest tokens; the others share the rest evenly.

    Args:
        listed: log-probs of some tokens, in nats.
        vocabulary: number of all tokens.

    Returns:
        In nats; NaN if less than two tokens are listed. p = ½, ¼ and four others with 1/16 each give −2 ln 2 and √1.5 ln 2.
    """
    if len(listed) < 2:
        return math.nan, math.nan
    values = np.asarray(listed, dtype=np.float64)
    shares = np.exp(values)
    rest, others = 1 - float(shares.sum()), vocabulary - len(values)
    if rest > 0 and others > 0:
        values, shares = np.append(values, math.log(rest / others)), np.append(shares, rest)
    mean = float((shares * values).sum())
    return mean, math.sqrt(float((shares * (values - mean) ** 2).sum()))
