"""Test how metrics, attacks and aggregates are created from their names in a suite."""

from __future__ import annotations

from typing import Any

import pytest

from llm_forget.errors import RecipeError
from llm_forget.evaluation.attacks.min_k import MinK
from llm_forget.evaluation.metrics.rouge import Rouge
from llm_forget.utils.plugins import make_named

ATTACKS = ("llm_forget.evaluation.attacks", "row_scores")
METRICS = ("llm_forget.evaluation.metrics", "per_example")


def test_names_and_mappings_keep_their_order() -> None:
    made = make_named(["loss", {"name": "min_k", "k": 0.2}, "min_k"], *ATTACKS)
    assert [one.label for one in made] == ["loss", "min_k_0.2", "min_k"]
    assert made[1] == MinK(k=0.2)
    assert make_named([{"name": "rouge", "part": "f1"}], *METRICS) == [Rouge(part="f1")]
    assert make_named([], *METRICS) == []


def test_the_input_is_not_changed() -> None:
    entry = {"name": "min_k", "k": 0.3}
    make_named([entry], *ATTACKS)
    assert entry == {"name": "min_k", "k": 0.3}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["min_kk"], "did you mean 'min_k'"),
        ([{"k": 0.2}], "an entry of attacks has no name"),
        ([{"name": 3}], "an entry of attacks has no name"),
        ([{"name": "min_k", "share": 0.2}], "share"),
        (["loss", {"name": "min_k"}, "min_k", "loss"], "attacks gives loss, min_k twice"),
    ],
)
def test_invalid_entries_are_named(entries: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_named(entries, *ATTACKS)
