"""Test the aggregates of a suite: lookup by name, required inputs, and unknown names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from llm_forget.errors import RecipeError
from llm_forget.evaluation.aggregate import Estimate, aggregate
from llm_forget.evaluation.aggregates import ScoredSet, SuiteScores
from llm_forget.evaluation.sets import make_metrics
from llm_forget.evaluation.whole_sets import make_aggregates, measure_aggregates, suite_scores

OWN = """
from dataclasses import dataclass
from llm_forget.evaluation.aggregate import aggregate
@dataclass(frozen=True)
class Mean:
    scale: float = 1.0
    paper = "none"
    bounds = (0.0, float("inf"))
    needs = ("probability",)
    label = "mean"
    def value(self, known):
        return aggregate(known.column("probability", forget=True) * self.scale)
"""


@dataclass(frozen=True)
class Distance:
    """Mean distance between the forget sets of the model and of the oracle."""

    paper: ClassVar[str] = "none"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[tuple[str, ...]] = ("probability", "oracle")
    label: ClassVar[str] = "distance"

    def value(self, known: SuiteScores) -> Estimate:
        """The mean over examples."""
        own, other = (known.column("probability", forget=True, role=role) for role in (None, "oracle"))
        assert own is not None
        assert other is not None
        return aggregate(np.abs(own - other))


def a_set(*scores: float, forget: bool = True) -> ScoredSet:
    return ScoredSet(forget, {"probability": np.array(scores)})


def test_columns_join_sets_of_one_kind() -> None:
    known = SuiteScores({"forget": a_set(0.1, 0.2), "retain": a_set(0.9, forget=False), "forget_more": a_set(0.3)})
    assert known.column("probability", forget=True).tolist() == [0.1, 0.2, 0.3]  # type: ignore[union-attr]
    assert known.column("probability", forget=False).tolist() == [0.9]  # type: ignore[union-attr]
    assert known.column("entropy", forget=True) is None
    assert known.column("probability", forget=True, role="oracle") is None
    assert (known.has("probability"), known.has("entropy"), known.has("oracle")) == (True, False, False)


def test_an_aggregate_without_its_inputs_is_not_computed() -> None:
    """The mean of |0.5 − 0.1| and |0.4 − 0.2| is 0.3."""
    alone = SuiteScores({"forget": a_set(0.5, 0.4)}, {}, 3)
    assert measure_aggregates([Distance()], alone, named=False) == ({}, [])
    assert measure_aggregates([Distance()], alone, named=True) == (
        {},
        ["the aggregate distance was not computed: it needs oracle"],
    )
    both = SuiteScores(alone.sets, {"oracle": {"forget": a_set(0.1, 0.2)}}, 3)
    found, warnings = measure_aggregates([Distance()], both, named=True)
    assert found["distance"]["value"] == pytest.approx(0.3)
    assert (found["distance"]["n"], found["distance"]["bounds"]) == (2, [0.0, 1.0])
    assert warnings == []


def test_scores_of_a_control_are_read_from_its_result() -> None:
    """Null is read as NaN, text is not a score, and a set with other examples is omitted."""
    rows = {"a": {"probability": 0.5, "generated": "x"}, "b": {"probability": None, "attack_loss": -1.0}}
    control = {"sets": {"forget": {"digest": "1", "examples": rows}, "retain": {"digest": "2", "examples": rows}}}
    asked = {"sets": {name: {"digest": "1", "forget": name == "forget"} for name in ("forget", "retain")}}
    known = suite_scores(asked, {"forget": {}, "retain": {}}, {"oracle": control}, seed=5)
    assert (known.seed, set(known.controls["oracle"])) == (5, {"forget"})
    scores = known.controls["oracle"]["forget"].scores
    assert set(scores) == {"probability", "attack_loss"}
    assert scores["probability"][0] == 0.5
    assert math.isnan(scores["probability"][1])
    assert known.controls["oracle"]["forget"].forget


def test_a_custom_aggregate_is_one_file(tmp_path) -> None:
    (tmp_path / "mean.py").write_text(OWN)
    (one,) = make_aggregates([{"name": str(tmp_path / "mean.py"), "scale": 2}])
    found, _ = measure_aggregates([one], SuiteScores({"forget": a_set(0.5, 0.25)}), named=True)
    assert found["mean"]["value"] == 0.75
    with pytest.raises(RecipeError, match="scael"):
        make_aggregates([{"name": str(tmp_path / "mean.py"), "scael": 2}])


def test_unknown_metrics_and_aggregates_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown metric 'auc'.* Known: collapse, entropy, "):
        make_metrics(["auc"])
    with pytest.raises(RecipeError, match="auc is no aggregate that can be named"):
        make_aggregates(["auc"])
    with pytest.raises(RecipeError, match="unknown aggregate 'nothing_like_it'"):
        make_aggregates(["nothing_like_it"])
