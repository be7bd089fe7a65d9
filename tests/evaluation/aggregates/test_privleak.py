"""Test PrivLeak against values computed by hand; without an oracle it is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregates.privleak import privleak, privleak_of

nan = math.nan
shares = st.floats(0, 1)


def test_worked_values() -> None:
    """AUC 0.9 against 0.5: (0.1 − 0.5) / 0.5 = −80 %; 0.2 against 0.5: (0.8 − 0.5) / 0.5 = 60 %; equal AUCs give 0."""
    assert privleak_of([0.9, 0.2, 0.5, 1.0, 0.0], [0.5] * 5) == pytest.approx([-80, 60, 0, -100, 100])
    assert privleak_of(0.0, 0.98) == pytest.approx(4900)
    assert np.isnan(privleak_of(0.4, 1.0))


def test_a_missing_oracle_is_refused_and_not_replaced_by_one_half() -> None:
    with pytest.raises(UserError, match="needs the oracle's AUC"):
        privleak_of(0.7, None)


@given(shares, st.floats(0, 0.99), st.floats(0, 0.5))
def test_bounds_sign_and_monotonicity(own: float, oracle: float, more: float) -> None:
    found = float(privleak_of(own, oracle))
    assert found >= -100 - 1e-9
    assert np.sign(found) == np.sign(oracle - own) or abs(found) < 1e-9
    assert privleak_of(min(1.0, own + more), oracle) <= found + 1e-9
    assert privleak_of(oracle, oracle) == 0


def test_from_scores() -> None:
    """Model: members 3, 1 above non-members 0, 2 in 3 of 4 pairs; oracle: 1, 0 above 0.5, 2 in 1 of 4: (¼ − ¾) / ¾."""
    found = privleak([[3.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [0.5, 2.0]])
    assert (found.auc, found.oracle_auc) == (0.75, 0.25)
    assert found.value == pytest.approx(-200 / 3)
    assert (found.n, found.n_nonmembers, found.n_nan, found.note) == (2, 2, 0, "")


def test_rows_without_a_score_from_one_model_are_dropped_for_both() -> None:
    clean = privleak([[3.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [0.5, 2.0]])
    gaps = privleak([[3.0, nan, 1.0, 9.0], [1.0, 5.0, 0.0, nan]], [[0.0, 2.0, nan], [0.5, 2.0, nan]])
    assert (gaps.value, gaps.auc, gaps.oracle_auc) == (clean.value, clean.auc, clean.oracle_auc)
    assert (gaps.n, gaps.n_nonmembers, gaps.n_nan) == (2, 2, 3)


def test_a_model_against_itself_is_zero_with_no_width() -> None:
    """Both models are resampled on the same rows, so common variation cancels."""
    draw = np.random.default_rng(1)
    own, other = draw.normal(0.5, 1, 30), draw.normal(0, 1, 30)
    same = privleak([own, own], [other, other])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    moved = privleak([own + 1, own], [other, other])
    assert moved.low < moved.value < moved.high < 0


def test_large_and_missing_values_are_flagged() -> None:
    large = privleak([[0.0, 0.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 2.5]])
    assert large.value == pytest.approx(300)  # AUC 0 against ¾: (1 − ¼) / ¼
    assert "no upper bound" in large.note
    perfect = privleak([[0.0, 2.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]])
    assert math.isnan(perfect.value)
    assert math.isnan(perfect.low)
    assert "the oracle's AUC is 1" in perfect.note
    nothing = privleak([[nan], [1.0]], [[1.0], [1.0]])
    assert math.isnan(nothing.value)
    assert "no row" in nothing.note


def test_rows_of_other_sets_are_refused() -> None:
    with pytest.raises(UserError, match="2 of the model and 1 of the oracle"):
        privleak([[1.0, 2.0], [1.0]], [[1.0], [1.0]])
