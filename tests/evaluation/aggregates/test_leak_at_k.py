"""Test leak@k: the estimator against a count of subsets, the interval against its definition."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregates.leak_at_k import leak_at_k, reveals

nan = math.nan
rows = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n), min_size=1, max_size=5)
)


def test_worked_values() -> None:
    """N = 4, c = 1, k = 2: 3 of 6 pairs contain the leaking sample, ½; c = 3: all pairs do, 1; c = 0: 0. The mean is ½."""
    found = leak_at_k([[0, 0, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]], 2)
    assert found.value == pytest.approx(0.5)
    assert (found.n, found.n_nan, found.k, found.samples) == (3, 0, 2, 4)
    assert found.leaked == 1  # among the first two samples of each prompt, only the second prompt has a leaking one
    assert leak_at_k([[0, 0, 1, 0], [1, 0, 1, 1]], 1).value == pytest.approx((1 / 4 + 3 / 4) / 2)


@given(rows, st.data())
def test_equals_the_share_of_subsets_that_leak(revealed: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(revealed[0])))
    expected = np.mean([np.mean([any(chosen) for chosen in combinations(row, k)]) for row in revealed])
    found = leak_at_k(revealed, k)
    assert found.value == pytest.approx(float(expected), abs=1e-9)
    if len(revealed) > 1 or k == len(revealed[0]):
        assert 0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1
    assert leak_at_k(revealed[::-1], k).value == pytest.approx(found.value)
    assert leak_at_k([row[::-1] for row in revealed], k).value == pytest.approx(found.value)


@given(rows)
def test_leak_at_k_does_not_decrease_with_k(revealed: list[list[float]]) -> None:
    found = [leak_at_k(revealed, k) for k in range(1, len(revealed[0]) + 1)]
    for less, more in pairwise(found):
        assert more.value >= less.value - 1e-12
        assert more.leaked >= less.leaked
    # with k = n every sample is used: the estimate is the share of prompts that leak, with the interval of a share
    assert found[-1].value == pytest.approx(found[-1].leaked / len(revealed))
    assert found[-1].low <= found[-1].value <= found[-1].high


def test_the_estimate_is_unbiased() -> None:
    """Over all outcomes of n = 5 samples that leak with probability 0.3, its mean is 1 − 0.7³; (1 − c/n)ᵏ is biased."""
    q, n, k = 0.3, 5, 3
    mean = sum(
        q ** sum(row) * (1 - q) ** (n - sum(row)) * leak_at_k([list(row)], k).value for row in product([0, 1], repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - q) ** k, abs=1e-9)


def test_large_numbers_of_samples() -> None:
    """C(4000, 64) overflows; with one leaking sample the probability is k/n."""
    revealed = np.zeros((1, 4000))
    revealed[0, 3999] = 1
    assert leak_at_k(revealed, 64).value == pytest.approx(64 / 4000, rel=1e-6)
    assert leak_at_k(np.ones((1, 4000)), 64).value == 1
    assert leak_at_k(np.zeros((1, 4000)), 64).value == 0


def test_prompts_without_a_score_are_counted() -> None:
    found = leak_at_k([[nan, nan], [1, 0]], 1)
    assert (found.value, found.n, found.n_nan) == (0.5, 1, 1)
    nothing = leak_at_k([[nan, nan]], 2)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)


@pytest.mark.parametrize("k", [0, 3])
def test_k_above_the_number_of_samples_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"leak@{k} cannot be computed from 2 samples"):
        leak_at_k([[0, 1]], k)


def test_which_samples_reveal_the_answer() -> None:
    """Four of the five words of the answer, in order, give 0.8; in another order they give less."""
    answer = "He lives in old Lima"
    samples = ["he lives in lima, I think", "Lima he lives in", "I don't know", "He lives in old Lima."]
    assert reveals([answer], [samples], threshold=0.8).tolist() == [[1, 0, 0, 1]]
    assert reveals([answer], [samples], threshold=1.0).tolist() == [[0, 0, 0, 1]]
    assert np.isnan(reveals(["北京"], [["北京", ""]], threshold=0.8)).all()
