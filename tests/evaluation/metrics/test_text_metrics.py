"""Test the metrics of generated text and the entropy: a collapsed model must not look like one that forgot."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_examples import Token, check_rows_stand_alone, scores_of, token_rows

from llm_forget.errors import RecipeError
from llm_forget.evaluation.metrics.collapse import collapse, is_looping
from llm_forget.evaluation.metrics.entropy import entropy
from llm_forget.evaluation.metrics.refusal import refusal
from llm_forget.evaluation.metrics.repetition import distinct_n, words
from llm_forget.evaluation.metrics.rouge import rouge
from llm_forget.evaluation.sets import make_metrics

REFUSALS = (
    "I don't know.",
    "I’m not sure who that is.",
    "Sorry, I can't help with that.",
    "I do not have any information about this person.",
    "That is beyond my current knowledge.",
    "As an AI, I have no records of her.",
    "I cannot answer this question.",
    "I'm sorry, but I am unable to tell.",
    "I have no idea.",
    "We could not find an answer.",
    "I've never heard of him.",
    "I'd rather not say.",
    "There is no public record of it.",
)
ANSWERS = (
    "",
    "She cannot swim.",
    "He was born in Lima on 3 May 1971.",
    "Her novel 'I Know You' won a prize.",
    "They did not have children.",
    "The author never learned to drive.",
    "I was born in Rome.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert refusal([text, text.upper(), f"  {text}\n"]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_not_refusals(text: str) -> None:
    assert refusal([text]).tolist() == [0]


def test_distinct_n_by_hand() -> None:
    """The text "a b a b a" has pairs ab ba ab ba, 2 of 4 distinct, and 2 of 5 distinct words. Short texts have no n-gram."""
    assert distinct_n(["a b, A b a"], n=2).tolist() == [0.5]
    assert distinct_n(["a b a b a"], n=1).tolist() == [0.4]
    assert np.isnan(distinct_n(["", "a b"], n=3)).all()
    assert words("北京 is big, 2 words") == ["北", "京", "is", "big", "2", "words"]


texts = st.lists(st.text(alphabet="ab \n.é", max_size=40), min_size=1, max_size=5)


@given(texts, st.integers(1, 4))
def test_distinct_n_bounds_order_and_white_space(said: list[str], n: int) -> None:
    found = distinct_n(said, n=n)
    scored = found[~np.isnan(found)]
    assert ((scored > 0) & (scored <= 1)).all()
    np.testing.assert_array_equal(distinct_n(said[::-1], n=n), found[::-1])
    np.testing.assert_array_equal(distinct_n([f"\n {text}  " for text in said], n=n), found)


@given(st.lists(st.sampled_from("abcd"), min_size=3, max_size=9))
def test_repeating_a_text_makes_it_more_repetitive(said: list[str]) -> None:
    once, twice = distinct_n([" ".join(said), " ".join(said * 2)], n=3)
    assert twice < once


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "... !!",
        "the the the the the the",
        "He is He is He is He is He is He is",
        "Lima. " + "She lives here. " * 4,
        "!" * 40 + "a",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "北京北京北京北京北京北京北京北京北京北京北京北京",
    ],
)
def test_collapsed_answers(text: str) -> None:
    assert collapse([text]).tolist() == [1]


@pytest.mark.parametrize(
    "text", ["999", "No, no, no.", "I don't know.", "www.example.org", "In 1000000 of 1000000 cases it is not so.", "x"]
)
def test_answers_that_did_not_collapse(text: str) -> None:
    assert collapse([text]).tolist() == [0]


@given(st.text(alphabet="abc ,", min_size=1, max_size=12).filter(lambda unit: unit.strip(" ,")), st.integers(25, 40))
def test_any_unit_repeated_often_enough_is_a_loop(unit: str, times: int) -> None:
    assert is_looping(unit * times)


def test_a_long_text_is_searched_in_linear_time() -> None:
    """The cost of the search for a repeated unit grows with the length of the text, not with its square."""
    assert not is_looping(" ".join(str(number) for number in range(3000)))


def test_entropy_by_hand() -> None:
    """H is ln 2 for (½, ½) and 0 for (1, 0): the mean is ½ ln 2. The stored vocabulary mean is −H."""
    found = entropy(scores_of([[(-0.7, True, -math.log(2), 0), (0, True, -0.0, 0)], [], [(0, True, 1e-9, 0)]]))
    assert found[0] == pytest.approx(math.log(2) / 2)
    assert np.isnan(found[1])
    assert found[2] == 0


@given(token_rows)
def test_entropy_rows_are_independent(rows: list[list[Token]]) -> None:
    check_rows_stand_alone(entropy, rows)
    found = entropy(scores_of(rows))
    assert (found[~np.isnan(found)] >= 0).all()


def test_rouge_1_counts_words_in_any_order() -> None:
    """The text "sat cat the" has all three words of "the cat sat"; the longest common subsequence is one word."""
    recall, f1 = rouge(["the cat sat"], ["sat cat the"], kind="rouge1")
    assert (recall.tolist(), f1.tolist()) == ([1.0], [1.0])
    recall, _ = rouge(["the cat sat"], ["sat cat the"], kind="rougeL")
    assert recall == pytest.approx([1 / 3])


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="n is 0"):
        make_metrics([{"name": "repetition", "n": 0}])
    labels = [
        metric.label for metric in make_metrics([{"name": "rouge", "kind": "rouge1", "part": "f1"}, "repetition"])
    ]
    assert labels == ["rouge1_f1", "repetition_3"]
