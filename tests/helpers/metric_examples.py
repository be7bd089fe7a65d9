"""Token scores made by hand, and a check that per-row functions treat rows independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from llm_forget.evaluation.tokens import Floats, TokenScores

# (log-prob, hit, vocabulary mean, vocabulary spread) of a token
Token = tuple[float, bool, float, float]
tokens = st.tuples(
    st.floats(-30, 0, allow_subnormal=False),
    st.booleans(),
    st.floats(-10, 0, allow_subnormal=False),
    st.floats(0.01, 5),
)
token_rows = st.lists(st.lists(tokens, max_size=8), min_size=1, max_size=6)


def scores_of(rows: Sequence[Sequence[Token]]) -> TokenScores:
    flat = [token for row in rows for token in row]
    columns = [np.array([token[place] for token in flat], dtype=float) for place in range(4)]
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return TokenScores(columns[0], columns[1] > 0.5, columns[2], columns[3], offsets)


def hits(*rows: Sequence[int]) -> TokenScores:
    """Draw rows of 0 and 1: whether each token was the arg-max."""
    return scores_of([[(-1.0, bool(hit), -1.0, 1.0) for hit in row] for row in rows])


def check_rows_stand_alone(function: Callable[[TokenScores], Floats], rows: Sequence[Sequence[Token]]) -> None:
    """Check that the value of a row does not depend on the order of rows or on empty rows."""
    found = function(scores_of(rows))
    assert found.shape == (len(rows),)
    np.testing.assert_allclose(function(scores_of(rows[::-1])), found[::-1], rtol=1e-12)
    padded = [part for row in rows for part in (row, [])]
    np.testing.assert_allclose(function(scores_of(padded))[::2], found, rtol=1e-12)
