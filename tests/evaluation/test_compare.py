"""Test the comparison of two results: same rows and settings, or an error."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.errors import UserError
from llm_forget.evaluation.compare import check_same_set, column, paired_change


def result(digest: str = "a", length: int = 8) -> dict[str, Any]:
    return {"settings": {"encoding": {"max_length": length}}, "sets": {"forget": {"digest": digest, "examples": {}}}}


def test_the_same_set_passes_if_other_fields_differ() -> None:
    other = copy.deepcopy(result())
    other["sets"]["more"] = {"digest": "b"}
    other["settings"]["batch_tokens"] = 7
    check_same_set(result(), other, "forget")


@pytest.mark.parametrize(
    "other",
    [result(digest="b"), result(length=9), {"sets": {}}, {"sets": {"forget": {"digest": "a"}}}],
    ids=["other examples", "other encoding", "no such set", "no settings"],
)
def test_incomparable_results_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the judge was not measured on the same forget set in the same way"):
        check_same_set(result(), other, "forget", "judge")


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False))))
def test_a_column_has_every_example_in_order(values: list[float | None]) -> None:
    examples = {f"row{index}": {"score": value, "other": 1.0} for index, value in enumerate(values)}
    found = column({"examples": examples}, "score")
    assert len(found) == len(values)
    for own, value in zip(found, values, strict=True):
        assert math.isnan(own) if value is None else own == value
    assert all(math.isnan(one) for one in column({"examples": examples}, "nowhere"))


def scored(**scores: float | None) -> dict[str, Any]:
    values = [value for value in scores.values() if value is not None]
    metrics = {"probability": {"value": sum(values) / len(values)}}
    return {"metrics": metrics, "examples": {one: {"probability": value} for one, value in scores.items()}}


def test_a_change_is_paired_by_example() -> None:
    """Every example decreases by 0.4, so every resample has that mean, even if the examples differ widely."""
    found = paired_change(scored(b=0.5, a=0.1), scored(a=0.5, b=0.9), "probability")
    assert found == pytest.approx((-0.4, -0.4))
    low, high = paired_change(scored(a=0.1, b=0.9), scored(a=0.5, b=0.5), "probability") or (0.0, 0.0)
    assert (low, high) == pytest.approx((-0.4, 0.4))


@pytest.mark.parametrize(
    "before",
    [
        scored(a=0.5),
        scored(c=0.5, d=0.9),
        scored(a=0.5, b=None),
        {"metrics": {}, "examples": scored(a=1, b=1)["examples"]},
    ],
    ids=["one pair", "other examples", "not scored", "no such metric"],
)
def test_a_change_without_pairs_has_no_interval(before: dict[str, Any]) -> None:
    assert paired_change(scored(a=0.1, b=0.5), before, "probability") is None


def test_a_metric_that_is_not_a_mean_of_scores_has_no_interval() -> None:
    after = scored(a=0.1, b=0.5)
    after["metrics"]["probability"]["value"] = 0.2
    assert paired_change(after, scored(a=0.5, b=0.9), "probability") is None
