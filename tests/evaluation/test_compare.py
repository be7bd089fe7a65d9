"""Test the comparison of two results: same rows and settings, or an error."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.errors import UserError
from llm_forget.evaluation.compare import check_same_set, column


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
