"""Test the equivalence rule: worked values, its four answers, and its error rates on simulated models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.evaluation.equivalence import (
    MARGIN,
    Answer,
    Kept,
    Moments,
    auc_moments,
    equivalence,
    independent_moments,
    kept_means,
    kept_pairs,
    paired_moments,
)
from llm_forget.evaluation.intervals import placements

ORACLE = np.linspace(0.05, 0.2, 40)
TARGET = ORACLE + np.linspace(0.6, 0.8, 40)


def left(share: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    return ORACLE + share * (TARGET - ORACLE) + noise * np.random.default_rng(seed).normal(size=40)


@pytest.mark.parametrize(
    ("share", "answer"),
    [
        (0.0, Answer.AS_IF_NEVER_SEEN),
        (0.1, Answer.AS_IF_NEVER_SEEN),
        (-0.1, Answer.AS_IF_NEVER_SEEN),
        (0.3, Answer.LEFT),
        (1.0, Answer.LEFT),
        (1.2, Answer.LEFT),
        (-0.6, Answer.OVERDONE),
    ],
)
def test_the_answers(share: float, answer: Answer) -> None:
    found = equivalence(paired_moments(left(share), ORACLE, TARGET))
    assert found.answer is answer
    assert found.ratio == pytest.approx(share, abs=1e-9)
    assert found.low - 1e-9 <= found.ratio <= found.high
    assert found.needed is None


def test_a_metric_that_does_not_see_the_target_says_so() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    found = equivalence(paired_moments(left(0.5), ORACLE, ORACLE + noise - noise.mean()))
    assert found.answer is Answer.CANNOT_TELL
    assert math.isnan(found.ratio)


def test_few_rows_are_too_few_and_about_as_many_as_it_says_would_do() -> None:
    draw = np.random.default_rng(1)

    def drawn(rows: int) -> Moments:
        oracle = draw.beta(1, 6, rows)
        target = draw.beta(8, 2, rows)
        return paired_moments(oracle + 0.3 * draw.normal(size=rows), oracle, target)

    few = equivalence(drawn(20))
    assert few.answer is Answer.TOO_FEW
    assert few.needed is not None
    assert 20 < few.needed < 400
    answers = [equivalence(drawn(2 * few.needed)).answer for _ in range(20)]
    assert answers.count(Answer.AS_IF_NEVER_SEEN) >= 18


@pytest.mark.parametrize("rows", range(2, 13))
def test_a_handful_of_rows_never_proves_it(rows: int) -> None:
    """A model that remembers every fifth question shows none of them in 0.8¹⁰ = 11 % of draws of ten."""
    found = equivalence(paired_moments(np.zeros(rows), np.zeros(rows), np.ones(rows)))
    assert found.answer is Answer.TOO_FEW
    assert equivalence(paired_moments(np.zeros(20), np.zeros(20), np.ones(20))).answer is Answer.AS_IF_NEVER_SEEN


def test_the_direction_of_the_metric_does_not_matter() -> None:
    """A metric that rises with forgetting gives the same ratio."""
    one = equivalence(paired_moments(left(0.3, 0.05), ORACLE, TARGET))
    other = equivalence(paired_moments(-left(0.3, 0.05), -ORACLE, -TARGET))
    assert (other.ratio, other.low, other.high) == pytest.approx((one.ratio, one.low, one.high))


@given(st.integers(2, 30), st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 99))
def test_one_more_row_changes_the_moments_as_it_does_in_the_sample(rows: int, a: float, b: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=rows), draw.normal(size=rows)
    zero = np.zeros(rows)
    added = paired_moments(first, zero, second).with_row(a, b)
    whole = paired_moments(np.append(first, a), np.zeros(rows + 1), np.append(second, b))
    assert vars(added) == pytest.approx(vars(whole), abs=1e-12)


def test_independent_moments_are_those_of_independent_errors() -> None:
    found = independent_moments(30, (0.4, 0.03), (0.1, 0.04), (0.9, 0.02))
    expected = {"rows": 30, "a": 0.3, "b": 0.8, "var_a": 0.0025, "var_b": 0.0020, "cov": 0.0016}
    assert vars(found) == pytest.approx(expected)


def test_moments_of_aucs() -> None:
    """The means are differences of AUCs; a model that equals the target has R = 1 without any spread."""
    draw = np.random.default_rng(0)
    oracle, target = (draw.normal(size=30), draw.normal(size=25)), (draw.normal(2, 1, 30), draw.normal(size=25))
    found = auc_moments([target[0], oracle[0], target[0]], [target[1], oracle[1], target[1]])
    expected = placements(*target)[0].mean() - placements(*oracle)[0].mean()
    assert (found.a, found.b, found.rows) == (pytest.approx(expected), pytest.approx(expected), 25)
    result = equivalence(found)
    assert (result.answer, result.ratio, result.low) == (Answer.LEFT, pytest.approx(1), pytest.approx(1))


def _model(draw: np.random.Generator, rows: int, share: float, lumpy: bool) -> Moments:
    oracle, target = draw.beta(1, 6, rows), draw.beta(8, 2, rows)
    kept = draw.random(rows) < share if lumpy else share
    noise = 0.05 * draw.normal(size=rows)
    return paired_moments(oracle + kept * (target - oracle) + noise, oracle, target)


@pytest.mark.parametrize("lumpy", [True, False], ids=["every second question", "half of each answer"])
@pytest.mark.parametrize("rows", [10, 32, 400])
@pytest.mark.parametrize("share", [0.5, MARGIN])
def test_a_model_that_knows_is_not_called_one_that_never_saw(share: float, rows: int, lumpy: bool) -> None:
    """At most 5 % at the margin itself (7 % of 400 draws is two standard errors more), and none with half the knowledge."""
    draw = np.random.default_rng(0)
    found = [equivalence(_model(draw, rows, share, lumpy)).answer for _ in range(400)]
    assert found.count(Answer.AS_IF_NEVER_SEEN) <= (28 if share == MARGIN else 0)


@pytest.mark.parametrize(("rows", "lowest"), [(32, 0.95), (400, 1.0)])
def test_a_copy_of_the_oracle_is_found(rows: int, lowest: float) -> None:
    draw = np.random.default_rng(0)
    found = [equivalence(_model(draw, rows, 0.0, False)).answer for _ in range(100)]
    assert found.count(Answer.AS_IF_NEVER_SEEN) >= 100 * lowest


# What must stay.


@pytest.mark.parametrize(
    ("loss", "noise", "answer"),
    [
        (0.0, 0.0, Kept.KEPT),
        (0.02, 0.02, Kept.KEPT),
        (-0.1, 0.02, Kept.KEPT),
        (0.12, 0.02, Kept.HARMED),
        (0.12, 0.5, Kept.TOO_FEW),
        (0.0, 0.3, Kept.TOO_FEW),
    ],
)
def test_kept_harmed_or_too_few(loss: float, noise: float, answer: Kept) -> None:
    before = np.linspace(0.7, 0.9, 40)
    after = before * (1 - loss) + noise * np.random.default_rng(3).normal(size=40)
    found = kept_pairs(after, before, bad=-1)
    assert found.answer is answer
    assert (found.needed is None) == (answer is not Kept.TOO_FEW)
    mirrored = kept_pairs(-after, -before, bad=1)
    assert (mirrored.answer, mirrored.loss) == (answer, pytest.approx(found.loss))


def test_a_loss_of_the_margin_is_rarely_called_kept() -> None:
    draw, found = np.random.default_rng(0), []
    for _ in range(400):
        before = draw.beta(8, 2, 40)
        found.append(kept_pairs(0.95 * before + 0.05 * draw.normal(size=40), before, bad=-1).answer)
    assert found.count(Kept.KEPT) <= 28


def test_an_absolute_loss_needs_no_reference() -> None:
    """A rate that was 0 has no relative loss."""
    before, after = np.zeros(40), np.repeat([0.0, 1.0], 20)
    assert kept_pairs(after, before, bad=1, relative=False).answer is Kept.HARMED
    assert kept_pairs(after, before, bad=1).answer is Kept.TOO_FEW
    unchanged = kept_pairs(before, before, bad=1, relative=False)
    # one imagined row more is lost: (1 + 1.68) / 41
    assert (unchanged.answer, unchanged.high) == (Kept.TOO_FEW, pytest.approx((1 + 1.6839) / 41, abs=1e-3))
    assert kept_pairs(np.zeros(60), np.zeros(60), bad=1, relative=False).answer is Kept.KEPT


def test_means_alone_are_compared_as_if_independent() -> None:
    """20 against 20.2 with standard errors of 0.1: a loss of 1 % ± 1.7 · 0.7 %."""
    found = kept_means(100, (20.2, 0.1), (20.0, 0.1), bad=1)
    assert (found.answer, found.loss) == (Kept.KEPT, pytest.approx(0.01))
    assert found.high == pytest.approx(0.01 + 1.6604 * 0.00711, abs=1e-4)
    assert kept_means(100, (30.0, 0.1), (20.0, 0.1), bad=1).answer is Kept.HARMED
    assert kept_means(100, (20.2, 2.0), (20.0, 2.0), bad=1).answer is Kept.TOO_FEW
