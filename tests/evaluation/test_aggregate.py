"""Test means, intervals, and the count of unscored rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from llm_forget.evaluation.aggregate import aggregate, interval, proportion
from llm_forget.evaluation.intervals import binomial_interval

scores = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30)


def test_nan_is_counted_and_not_averaged() -> None:
    """(0.2 + 0.4) / 2 = 0.3; with the two NaN as zeros it would be 0.15."""
    found = aggregate([0.2, math.nan, 0.4, math.nan])
    assert found.value == pytest.approx(0.3)
    assert (found.n, found.n_nan) == (2, 2)


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_nothing_scored_is_nan(values: list[float]) -> None:
    found = aggregate(values)
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert (found.n, found.n_nan) == (0, len(values))


def test_one_score_has_no_interval() -> None:
    found = aggregate([0.5])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@given(scores)
def test_the_interval_contains_the_mean_and_is_within_the_bounds(values: list[float]) -> None:
    found = aggregate(values, bounds=(0, 1))
    assert found.n + found.n_nan == len(values)
    if found.n > 1:
        assert 0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1


def test_the_width_matches_the_standard_error() -> None:
    """The mean of 400 scores with standard deviation ½ has standard error 0.5/√400 = 0.025: ± 1.966 · 0.025 = 0.049."""
    found = aggregate([0.0, 1.0] * 200)
    assert found.low == pytest.approx(0.5 - 0.049, abs=0.001)
    assert found.high == pytest.approx(0.5 + 0.049, abs=0.001)


def test_scores_of_0_and_1_are_a_rate_in_these_bounds_only() -> None:
    """0 of 10: Wilson's upper end is z² / (n + z²) = 0.2775. A KL of 0 on ten rows is no rate."""
    assert aggregate([0.0] * 10, bounds=(0, 1)).high == pytest.approx(0.2775, abs=1e-4)
    assert aggregate([0.0] * 10, bounds=(0, None)).high == 0
    assert aggregate([0.0] * 9 + [0.5], bounds=(0, 1)).low == 0


def test_large_sets_are_resampled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_forget.evaluation import aggregate as module

    drawn = []

    def statistic(rows):
        drawn.append(rows["all"].shape)
        return rows["all"].mean(-1)

    monkeypatch.setattr(module, "_MOST_DRAWS", 50)
    interval({"all": 10}, statistic, resamples=12)
    assert drawn == [(5, 10), (5, 10), (2, 10)]


def test_wilson_interval() -> None:
    """5 of 10, z² = 3.8415: centre ½, half-width 1.96 √(0.025 + 3.8415/400) / 1.38415 = 0.2634."""
    found = proportion([1, 0] * 5)
    assert (found.low, found.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    none = proportion([False] * 10)
    assert none.value == none.low == 0
    # z² / (n + z²)
    assert none.high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert proportion([1, math.nan]).n_nan == 1
    assert math.isnan(proportion([]).value)


def test_the_exact_interval() -> None:
    """0 of 10: 1 − 0.025^(1/10) = 0.3085; 5 of 10: 0.1871 to 0.8129 in published tables."""
    assert binomial_interval(0, 10, "exact") == pytest.approx((0, 0.30850), abs=1e-5)
    assert binomial_interval(10, 10, "exact") == pytest.approx((1 - 0.30850, 1), abs=1e-5)
    assert binomial_interval(5, 10, "exact") == pytest.approx((0.18709, 0.81291), abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 25])
def test_the_exact_interval_has_at_least_95_percent_coverage(n: int) -> None:
    ends = [binomial_interval(hits, n, "exact") for hits in range(n + 1)]
    for chance in np.linspace(0.01, 0.99, 99):
        held = sum(float(binom.pmf(hits, n, chance)) for hits, (low, high) in enumerate(ends) if low <= chance <= high)
        assert held >= 0.95 - 1e-9


@given(st.integers(1, 400), st.data())
def test_wilson_by_its_formula(n: int, data: st.DataObject) -> None:
    """``centre = (p + z²/2n) / (1 + z²/n)``, ``half-width = z √(p(1−p)/n + z²/4n²) / (1 + z²/n)``."""
    hits = data.draw(st.integers(0, n))
    share, z = hits / n, 1.959963984540054
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    assert binomial_interval(hits, n, "wilson") == pytest.approx((centre - half, centre + half), abs=1e-12)
