"""Test metrics against values computed by hand; the algebra is in the docstrings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.errors import UserError
from llm_forget.evaluation.aggregates.forget_quality import forget_quality
from llm_forget.evaluation.aggregates.model_utility import harmonic_mean, model_utility
from llm_forget.evaluation.aggregates.perplexity import perplexity, sliding_windows
from llm_forget.evaluation.metrics import AnswerGroup, Metric, SetScores
from llm_forget.evaluation.metrics.exact_memorisation import exact_memorisation
from llm_forget.evaluation.metrics.normalised_probability import normalised_probability
from llm_forget.evaluation.metrics.probability import probability
from llm_forget.evaluation.metrics.rouge import rouge
from llm_forget.evaluation.metrics.truth_ratio import forget_truth_ratio, kept_truth_ratio, truth_ratio
from llm_forget.evaluation.sets import make_metrics
from llm_forget.evaluation.tokens import TokenScores

nan = math.nan
logps = st.floats(-30, 0)


def tokens(*rows: list[float], hits: list[bool] | None = None) -> TokenScores:
    flat = np.array([value for row in rows for value in row], dtype=float)
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    none = np.zeros(len(flat))
    return TokenScores(flat, np.array(hits or [False] * len(flat), dtype=bool), none, none, offsets)


def test_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    """√(½ · ⅛) = ¼: a mean of logs, not exp of a sum (1/16) nor a mean of probabilities (5/16)."""
    scores = tokens([math.log(0.5), math.log(0.125)], [], [nan, -1.0])
    found = probability(scores.mean_logps())
    assert found[0] == pytest.approx(0.25)
    assert np.isnan(found[1:]).all()


def test_normalised_probability() -> None:
    """0.2 / (0.2 + 0.1 + 0.1) = ½; without wrong answers, or with NaN in one, the result is NaN."""
    ln = np.log
    found = normalised_probability([ln(0.2), ln(0.2), ln(0.2)], [[ln(0.1), ln(0.1)], [], [nan, ln(0.1)]])
    assert found[0] == pytest.approx(0.5)
    assert np.isnan(found[1:]).all()


def test_normalised_probability_does_not_underflow() -> None:
    """All are e^−2000, which underflows to 0: one of three equal values is still ⅓; all at −∞ gives 0/0."""
    found = normalised_probability([-2000.0, -np.inf], [[-2000.0, -2000.0], [-np.inf]])
    assert found[0] == pytest.approx(1 / 3)
    assert np.isnan(found[1])


def test_truth_ratio_in_both_definitions() -> None:
    """Right 0.2, wrong 0.1 and 0.4: arithmetic (0.5/2)/0.2 = 1.25; geometric √0.04/0.2 = 1."""
    right, wrong = [np.log([0.2])], [np.log([0.1, 0.4])]
    assert truth_ratio(right, wrong, definition="arithmetic") == pytest.approx([1.25])
    assert truth_ratio(right, wrong, definition="geometric") == pytest.approx([1.0])


def test_truth_ratio_without_its_inputs_is_nan() -> None:
    right, wrong = [[-1.0], [], [-1.0], [nan], [-np.inf]], [[], [-1.0], [nan, -1.0], [-1.0], [-np.inf]]
    for definition in ("arithmetic", "geometric"):
        assert np.isnan(truth_ratio(right, wrong, definition=definition)).all()
    assert np.isfinite(truth_ratio([[-np.inf]], [[-1.0]], definition="geometric")).all()


def test_truth_ratio_aggregates() -> None:
    """R = 2, ½, 4, 0: min(R, 1/R) = ½, ½, ¼, 0 and max(0, 1 − R) = 0, ½, 0, 1."""
    assert forget_truth_ratio([2, 0.5, 4, 0]) == pytest.approx([0.5, 0.5, 0.25, 0])
    assert kept_truth_ratio([2, 0.5, 4, 0]).tolist() == [0, 0.5, 0, 1]
    assert np.isnan(forget_truth_ratio([nan])).all()
    assert np.isnan(kept_truth_ratio([nan])).all()


@given(st.lists(logps, min_size=1, max_size=4), st.lists(logps, min_size=1, max_size=4))
def test_geometric_never_exceeds_arithmetic_with_one_right_answer(right: list[float], wrong: list[float]) -> None:
    """The inequality of arithmetic and geometric means, on the wrong answers; for one wrong answer both are equal."""
    one = [right[:1]]
    geometric = truth_ratio(one, [wrong], definition="geometric")
    arithmetic = truth_ratio(one, [wrong], definition="arithmetic")
    assert (geometric <= arithmetic * (1 + 1e-9)).all()
    assert truth_ratio(one, [wrong[:1]], definition="geometric") == pytest.approx(
        truth_ratio(one, [wrong[:1]], definition="arithmetic"), rel=1e-9
    )


def test_exact_memorisation() -> None:
    """Hits 1, 0, 1, 1 of four tokens give ¾. A row with NaN log-probs has a meaningless arg-max."""
    scores = tokens([-1.0] * 4, [nan, -1.0], hits=[True, False, True, True, True, True])
    found = exact_memorisation(scores)
    assert found[0] == 0.75
    assert np.isnan(found[1])


def test_rouge() -> None:
    """Words "the cat sat" and "the cat": LCS 2; recall 2/3, precision 1, F1 = 2 · ⅔ / (5/3) = 0.8. Stems are equal."""
    recall, f1 = rouge(["the cat sat", "running dogs", "the cat sat"], ["the cat", "run dog", ""], kind="rougeL")
    assert recall == pytest.approx([2 / 3, 1, 0])
    assert f1 == pytest.approx([0.8, 1, 0])


def test_rouge_cannot_score_another_script() -> None:
    """rouge_score keeps only a–z and 0–9: these answers would score 0, "forgotten", even if they were verbatim."""
    recall, f1 = rouge(["北京", "!!"], ["北京", "!!"], kind="rougeL")
    assert np.isnan(recall).all()
    assert np.isnan(f1).all()


def test_forget_quality_of_equal_and_of_disjoint_samples() -> None:
    """Disjoint samples of 10: D = 1 and p = 2 · 10!² / 20! = 1.0825e-5."""
    own = np.linspace(0.1, 0.5, 10)
    same = forget_quality(own, own)
    assert (same.pvalue, same.statistic, same.direction) == (1.0, 0.0, "equal")
    assert same.verdict == "no significant difference from the oracle (D = 0.00, p = 1, paired p = 1, n = 10)"
    apart = forget_quality(own, own + 1)
    assert apart.pvalue == pytest.approx(2 / math.comb(20, 10))
    assert apart.paired_pvalue == pytest.approx(2 / 2**10)  # all ten signs are the same
    assert apart.direction == "lower"
    assert "prefers right answers more" in apart.verdict
    assert forget_quality(own + 1, own).direction == "higher"


def test_the_paired_test_sees_what_the_two_sample_test_does_not() -> None:
    """Ratios from 0.1 to 10, each 20 % below the oracle's on the same question: the samples overlap almost entirely."""
    oracle = np.geomspace(0.1, 10, 20)
    found = forget_quality(oracle * 0.8, oracle)
    assert found.pvalue > 0.9
    assert found.paired_pvalue < 1e-4
    assert found.verdict.startswith("differs from the oracle (D = 0.05, p = 1, paired p = ")
    assert found.direction == "lower"
    assert math.isnan(forget_quality(oracle[:-1], oracle).paired_pvalue)


def test_forget_quality_counts_what_could_not_be_scored() -> None:
    found = forget_quality([0.1, nan, 0.3, 0.2, 0.4], [nan, nan, 0.2, 0.2, 0.1, 0.5])
    assert (found.n, found.n_oracle, found.n_nan) == (4, 4, 3)
    nothing = forget_quality([nan], [0.2])
    assert math.isnan(nothing.pvalue)
    assert "no truth ratio of the model" in nothing.verdict
    assert forget_quality([0.1, 0.2, 0.3], [5, 6, 7]).verdict.startswith("too few")


def test_harmonic_mean() -> None:
    """3 / (1 + 2 + 4) = 3/7; a zero gives 0; a NaN is not dropped, since that would change the quantity."""
    assert harmonic_mean([1, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1, 0]) == 0
    assert np.isnan(harmonic_mean([1, nan]))
    assert np.isnan(harmonic_mean([0, nan]))
    with pytest.raises(UserError, match="no values"):
        harmonic_mean([])
    with pytest.raises(UserError, match="negative"):
        harmonic_mean([1, -0.1])


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=9))
def test_harmonic_mean_is_between_the_minimum_and_the_mean(values: list[float]) -> None:
    found = float(harmonic_mean(values))
    assert min(values) * (1 - 1e-9) <= found <= np.mean(values) * (1 + 1e-9)


def test_model_utility_averages_within_a_component_first() -> None:
    """Means ½ (one NaN excluded) and 1: 2 / (2 + 1) = ⅔."""
    found = model_utility({"retain": {"probability": [0.25, 0.75, nan], "rouge": [1.0, 1.0, 1.0]}})
    assert found.value == pytest.approx(2 / 3)
    assert found.components == {"retain.probability": 0.5, "retain.rouge": 1.0}
    assert (found.n, found.n_nan) == (2, 0)
    assert found.low < 2 / 3 < found.high
    broken = model_utility({"retain": {"probability": [nan, nan], "rouge": [1.0, 1.0]}})
    assert math.isnan(broken.value)
    assert math.isnan(broken.low)
    assert broken.n_nan == 1


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    """exp(−Σ log 1/50 / tokens) = 50; the mean is over tokens, not windows: one at ½ and three at 1 give 2^¼."""
    one = -math.log(50)
    assert perplexity(tokens([one] * 3, [one] * 9)).value == pytest.approx(50)
    found = perplexity(tokens([-math.log(2)], [0.0] * 3, [nan]))
    assert found.value == pytest.approx(2**0.25)
    assert (found.n, found.windows, found.n_nan) == (4, 2, 1)
    assert math.isnan(perplexity(tokens([nan])).value)
    assert perplexity(tokens([-1e9])).value == math.inf


@given(st.integers(2, 200), st.integers(3, 40), st.integers(1, 40), st.booleans())
def test_windows_score_each_token_once(length: int, window: int, stride: int, bos: bool) -> None:
    begin = (999,) if bos else ()
    stride = min(stride, window - 1)
    scored: list[int] = []
    for row in sliding_windows(range(length), window=window, stride=stride, begin=begin):
        assert len(row.input_ids) <= window
        assert row.input_ids[: len(begin)] == begin
        assert row.prompt_length >= 1
        assert list(row.input_ids[len(begin) :]) == list(range(row.input_ids[len(begin)], row.input_ids[-1] + 1))
        scored += row.input_ids[row.prompt_length :]
    assert scored == list(range(0 if bos else 1, length))


def test_windows_after_the_first_have_context() -> None:
    first, second, third = sliding_windows(range(20), window=10, stride=5)
    assert (first.input_ids[0], first.prompt_length) == (0, 1)
    assert (second.input_ids, second.prompt_length) == (tuple(range(5, 15)), 5)
    assert (third.input_ids, third.prompt_length) == (tuple(range(10, 20)), 5)
    for bad in ({"window": 10, "stride": 0}, {"window": 10, "stride": 10}, {"window": 1, "stride": 1}):
        with pytest.raises(UserError, match="perplexity has window"):
            sliding_windows(range(20), **bad)
    with pytest.raises(UserError, match="has 1 tokens"):
        sliding_windows([5])


def known() -> SetScores:
    group = AnswerGroup(tokens([-1.0], [-2.0], [-3.0]), np.array([0, 0, 1]), 2)
    return SetScores(True, tokens([-1.0, 0.0], [nan]), group, group, ["the cat", "x"], ["the cat sat", "y"])


@pytest.mark.parametrize("metric", make_metrics(None), ids=lambda metric: metric.label)
def test_every_metric_keeps_the_contract(metric: Metric) -> None:
    assert isinstance(metric, Metric)
    assert metric.forgotten in ("low", "high", "none")
    assert metric.paper
    scores = metric.per_example(known())
    assert scores.shape == (2,)
    low, high = metric.bounds
    averaged = getattr(metric, "averaged", lambda values, forget: values)
    for forget in (True, False):
        values = averaged(scores, forget=forget)
        assert all(math.isnan(value) or low <= value <= high for value in values)


def test_groups_belong_to_their_examples() -> None:
    group = AnswerGroup(tokens([-1.0], [-2.0], [-3.0]), np.array([0, 2, 0]), 3)
    assert [means.tolist() for means in group.mean_logps()] == [[-1.0, -3.0], [], [-2.0]]
