"""Test the AUC against values computed by hand and by its symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from llm_forget.evaluation.aggregates.auc import auc, auc_of
from llm_forget.evaluation.intervals import placements

nan, inf = math.nan, math.inf
# few values, so that ties are common
scores = st.lists(st.integers(-4, 4).map(float) | st.sampled_from([-inf, inf]), min_size=1, max_size=9)


def value(members: list[float], nonmembers: list[float]) -> float:
    return auc(members, nonmembers).value


def test_worked_values() -> None:
    """Members 3, 1 and non-members 2, 1: the pairs give 3>2 → 1, 3>1 → 1, 1<2 → 0, 1=1 → ½, so 2.5 / 4."""
    assert value([3, 1], [2, 1]) == 0.625
    assert value([2, 3], [0, 1]) == 1
    assert value([0, 1], [2, 3]) == 0
    assert value([5, 5, 5], [5, 5]) == 0.5
    assert value([0, -inf], [-inf]) == 0.75


@given(scores, scores)
def test_equals_the_count_over_all_pairs(members: list[float], nonmembers: list[float]) -> None:
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in members for other in nonmembers]
    found = value(members, nonmembers)
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert 0 <= found <= 1


@given(scores, scores)
def test_swapping_the_classes_gives_the_complement(members: list[float], nonmembers: list[float]) -> None:
    assert value(members, nonmembers) + value(nonmembers, members) == pytest.approx(1, abs=1e-12)
    negated = value([-one for one in members], [-one for one in nonmembers])
    assert negated == pytest.approx(1 - value(members, nonmembers), abs=1e-12)


@given(scores, scores, st.randoms())
def test_only_the_order_of_the_scores_matters(members: list[float], nonmembers: list[float], draw: object) -> None:
    """The AUC is invariant to increasing functions of the scores, to the order of rows, and to rows without a score."""
    expected = value(members, nonmembers)
    assert value([math.atan(one) for one in members], [math.atan(one) for one in nonmembers]) == expected
    draw.shuffle(members)  # type: ignore[attr-defined]
    assert value(members, nonmembers[::-1]) == pytest.approx(expected, abs=1e-12)
    assert value([nan, *members], [*nonmembers, nan, nan]) == pytest.approx(expected, abs=1e-12)


@given(scores, scores)
def test_a_higher_member_score_never_lowers_the_auc(members: list[float], nonmembers: list[float]) -> None:
    assert value([members[0] + 1, *members[1:]], nonmembers) >= value(members, nonmembers) - 1e-12


def test_unscored_rows_are_counted() -> None:
    found = auc([nan, 1.0, 2.0], [0.0, nan, nan, 3.0])
    assert (found.n, found.n_nonmembers, found.n_nan, found.value) == (2, 2, 3, 0.5)
    nothing = auc([nan], [1.0])
    assert math.isnan(nothing.value)
    assert (nothing.n, nothing.n_nonmembers, nothing.n_nan) == (0, 1, 1)
    assert math.isnan(auc([], [1.0]).value)
    assert math.isnan(auc([1.0], [0.0, 2.0]).low)  # one member gives no estimate of the spread


def test_placements_by_hand() -> None:
    """Of the non-members 2 and 1, 3 beats both and 1 ties with one: 1 and ¼. Their means are the AUC, 0.625."""
    own, other = placements([3, 1], [2, 1])
    assert (own.tolist(), other.tolist()) == ([1.0, 0.25], [0.5, 0.75])


@pytest.mark.parametrize("still", ["members", "nonmembers"])
def test_the_interval_is_over_both_classes(still: str) -> None:
    """If one class is constant, the AUC is a mean over the other: of 50 halves and 50 ones, ¾ ± 1.96 · ¼ / √100."""
    moving = np.array([0.0, 1.0] * 50)
    members, nonmembers = (np.zeros(100), -moving) if still == "members" else (moving, np.zeros(100))
    found = auc(members, nonmembers)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.701, 0.799), abs=0.01)


def test_an_auc_of_1_has_an_interval() -> None:
    """Five rows cannot show an AUC of exactly 1; more rows narrow it. The interval of 1 − AUC is the mirror image."""
    few, many = auc(np.arange(5) + 10.0, np.arange(5.0)), auc(np.arange(50) + 100.0, np.arange(50.0))
    assert few.high == many.high == 1
    assert 0.4 < few.low < 0.75
    assert 0.9 < many.low < 0.99
    mirrored = auc(np.arange(5.0), np.arange(5) + 10.0)
    assert (mirrored.low, mirrored.high) == pytest.approx((0, 1 - few.low), abs=1e-9)


@pytest.mark.parametrize("expected", [0.5, 0.86, 0.983])
def test_the_interval_has_its_nominal_coverage(expected: float) -> None:
    """Two normals d apart have AUC Φ(d/√2); 92 to 98 % of 500 intervals contain it, near 1 and with 20 rows too."""
    draw, held = np.random.default_rng(0), 0
    distance = float(norm.ppf(expected)) * 2**0.5
    for _ in range(500):
        found = auc(draw.normal(distance, 1, 20), draw.normal(0, 1, 20))
        held += found.low <= expected <= found.high
    assert 460 <= held <= 490


def test_rows_of_many_resamples_at_once() -> None:
    members, nonmembers = np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[2.0, 1.0], [1.0, 1.0]])
    assert auc_of(members, nonmembers).tolist() == [0.625, 0.0]
