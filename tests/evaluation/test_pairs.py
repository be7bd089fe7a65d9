"""Test that scores of several results are paired by example, and refused if they cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from llm_forget.evaluation.pairs import paired_change, paired_scores


def scored(**scores: float | None) -> dict[str, Any]:
    values = [value for value in scores.values() if value is not None]
    metrics = {"probability": {"value": sum(values) / len(values)}}
    return {"metrics": metrics, "examples": {one: {"probability": value} for one, value in scores.items()}}


def test_a_change_is_paired_by_example() -> None:
    """Every example decreases by 0.4, so the change has no spread, even if the examples differ widely."""
    found = paired_change(scored(b=0.5, a=0.1), scored(a=0.5, b=0.9), "probability")
    assert found == pytest.approx((-0.4, -0.4))
    # changes −0.4 and 0.4: mean 0, standard error 0.4, t quantile 12.71 with one degree of freedom
    low, high = paired_change(scored(a=0.1, b=0.9), scored(a=0.5, b=0.5), "probability") or (0.0, 0.0)
    assert (low, high) == pytest.approx((-0.4 * 12.7062, 0.4 * 12.7062), rel=1e-4)


@pytest.mark.parametrize(
    "before",
    [
        scored(a=0.5),
        scored(c=0.5, d=0.9),
        scored(a=0.5, b=0.9, c=0.1),
        {"metrics": {}, "examples": scored(a=1, b=1)["examples"]},
    ],
    ids=["one pair", "other examples", "more examples", "no such metric"],
)
def test_a_change_without_pairs_has_no_interval(before: dict[str, Any]) -> None:
    assert paired_change(scored(a=0.1, b=0.5), before, "probability") is None


def test_a_metric_that_is_not_a_mean_of_scores_has_no_interval() -> None:
    after = scored(a=0.1, b=0.5)
    after["metrics"]["probability"]["value"] = 0.2
    assert paired_change(after, scored(a=0.5, b=0.9), "probability") is None


def test_examples_that_one_result_could_not_score_are_left_out() -> None:
    after, before = scored(a=0.1, b=0.5, c=None), scored(a=0.5, b=None, c=0.9)
    assert paired_scores("probability", after, before) is None
    after["examples"]["d"] = before["examples"]["d"] = {"probability": 0.5}
    after["metrics"]["probability"]["value"], before["metrics"]["probability"]["value"] = (0.1 + 0.5 + 0.5) / 3, 1.9 / 3
    found = paired_scores("probability", after, before)
    assert found is not None
    assert [one.tolist() for one in found] == [[0.1, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(("value", "expected"), [((0.5 + 0.25) / 2, [0.5, 0.25]), (0.25, [0.5, 0.0])])
def test_the_truth_ratio_is_paired_by_the_values_that_it_averages(value: float, expected: list[float]) -> None:
    """R of ½ and 4: min(R, 1/R) is ½ and ¼ on a forget set, max(0, 1 − R) is ½ and 0 on another."""
    one = {
        "metrics": {"truth_ratio_geometric": {"value": value}},
        "examples": {"a": {"truth_ratio_geometric": 0.5}, "b": {"truth_ratio_geometric": 4.0}},
    }
    assert paired_scores("truth_ratio_geometric", one)[0].tolist() == pytest.approx(expected)  # type: ignore[index]
