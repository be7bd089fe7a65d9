"""Test extraction strength against values computed by hand, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_examples import Token, check_rows_stand_alone, hits, scores_of, token_rows

from llm_forget.evaluation.metrics.exact_memorisation import exact_memorisation
from llm_forget.evaluation.metrics.extraction_strength import extraction_strength

nan = float("nan")


def test_worked_values() -> None:
    """Hits 0 1 0 1 1: all tokens after the first three are right, 1 − 3/5; a wrong last token gives 0, not 1/n."""
    found = extraction_strength(hits([0, 1, 0, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0], [0, 1]))
    assert found.tolist() == [0.4, 1.0, 0.0, 0.0, 0.5]


def test_rows_without_a_score_are_nan() -> None:
    found = extraction_strength(scores_of([[], [(nan, True, -1, 1), (-1, True, -1, 1)], [(-1, True, -1, 1)]]))
    assert np.isnan(found).tolist() == [True, True, False]


@given(token_rows)
def test_bounds_and_rows_are_independent(rows: list[list[Token]]) -> None:
    check_rows_stand_alone(extraction_strength, rows)
    found = extraction_strength(scores_of(rows))
    scored = found[~np.isnan(found)]
    assert ((scored >= 0) & (scored <= 1)).all()
    # the extracted suffix is part of all correct tokens
    assert (scored <= exact_memorisation(scores_of(rows))[~np.isnan(found)] + 1e-12).all()


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_one_more_hit_never_lowers_it(row: list[bool], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(row) - 1))
    better = [*row[:place], True, *row[place + 1 :]]
    before, after = extraction_strength(hits([int(hit) for hit in row], [int(hit) for hit in better]))
    assert after >= before
    assert extraction_strength(hits([1] * len(row))) == pytest.approx([1.0])
