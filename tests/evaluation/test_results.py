"""Test results on disk: round trip, validation against the schema, and controls."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_examples import tiny_model, write_sets, write_task

from llm_forget.data.examples import DataSource
from llm_forget.errors import UserError
from llm_forget.evaluation.results import named_scores, open_results, read_results, write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.schema import check_results, json_schema
from llm_forget.evaluation.seeds import over_seeds, read_seeds, spread_of, write_seeds
from llm_forget.evaluation.sets import GenerationConfig, SamplingConfig, SetConfig
from llm_forget.evaluation.suite import CapabilityConfig, Suite
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.shipped import shipped


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Suite, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("results")
    write_sets(folder)
    suite = Suite(
        name="tiny",
        sets={
            "forget": SetConfig(DataSource(str(folder / "forget.jsonl"))),
            "retain": SetConfig(DataSource(str(folder / "retain.jsonl")), generate=False, utility="probability"),
        },
        generation=GenerationConfig(max_new_tokens=3),
        capability=CapabilityConfig(str(write_task(folder)), limit=4),
    )
    return folder, suite, run_suite(suite, tiny_model(), tiny_tokenizer())


def scores_of(file: Path) -> Path:
    """Return the Parquet file of a result file."""
    return file.parent / json.loads(file.read_text())["scores"]["file"]


def test_round_trip(measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    """JSON null is NaN in the columns, and is different from a column that a set does not have."""
    results = copy.deepcopy(measured[2])
    first = next(iter(results["sets"]["forget"]["examples"].values()))
    first["probability"] = None
    write_results(results, tmp_path / "a.json")
    assert read_results(tmp_path / "a.json") == results
    table = pq.read_table(scores_of(tmp_path / "a.json")).to_pydict()
    assert math.isnan(table["probability"][0])
    assert table["rougeL_recall"][-1] is None
    assert list(table)[:2] == ["set", "id"]
    assert "generated" not in table
    stored = json.loads((tmp_path / "a.json").read_text())
    assert "examples" not in stored["sets"]["forget"]
    assert "correct" not in stored["capability"]
    assert stored["scores"]["rows"] == 5 + 5 + 4
    for entry in stored["sets"]["forget"]["metrics"].values():
        assert entry["seed"] is None


def test_text_columns_exist_only_if_requested(measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    _, suite, _ = measured
    kept = run_suite(replace(suite, capability=None), tiny_model(), tiny_tokenizer(), keep_text=True)
    write_results(kept, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["scores"]["text"] is True
    assert "generated" in pq.read_table(scores_of(tmp_path / "a.json")).column_names
    assert read_results(tmp_path / "a.json") == kept


def test_invalid_results_are_neither_written_nor_read(
    measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path
) -> None:
    results = measured[2]
    bad = copy.deepcopy(results)
    bad["sets"]["forget"]["metrics"]["probability"]["forgotten"] = "sideways"
    del bad["sets"]["retain"]["digest"]
    with pytest.raises(UserError, match=r"sets\.forget\.metrics\.probability\.forgotten.*sets\.retain\.digest"):
        write_results(bad, tmp_path / "bad.json")
    assert list(tmp_path.iterdir()) == []
    write_results(results, tmp_path / "good.json")
    stored = json.loads((tmp_path / "good.json").read_text())
    (tmp_path / "good.json").write_text(json.dumps({**stored, "schema": 1}))
    with pytest.raises(UserError, match=r"good\.json has schema 1, but this version of llm-forget reads schema 2"):
        read_results(tmp_path / "good.json")
    (tmp_path / "good.json").write_text(json.dumps({**stored, "suite": None}))
    with pytest.raises(UserError, match=r"not a valid result: suite"):
        read_results(tmp_path / "good.json")
    with pytest.raises(UserError, match="schema None"):
        check_results([], "a list")


@pytest.mark.parametrize(
    ("section", "value", "place"),
    [
        ("attacks", {"members": "forget", "nonmembers": "holdout"}, r"attacks\.auc"),
        ("attacks", {"members": "f", "nonmembers": "h", "auc": {"loss": {"value": 1.0, "n": 2}}}, "n_nonmembers"),
        ("privleak", {"value": -80.0, "n": 2}, r"privleak\.oracle_auc"),
        ("leak", {"forget": {"at": {"1": {"value": 0.5}}}}, r"leak\.forget\.at\.1\.leaked"),
        ("kl_to_target", {"value": 0.1, "n": -1, "windows": 1}, r"kl_to_target\.n"),
        ("forget_quality", {"forget": {"pvalue": 0.1}}, r"forget_quality\.forget\.pvalue"),
        ("verdict", "all well", "verdict"),
    ],
)
def test_every_section_has_a_schema(
    measured: tuple[Path, Suite, dict[str, Any]], section: str, value: Any, place: str
) -> None:
    check_results(measured[2], "as it is")
    with pytest.raises(UserError, match=place):
        check_results({**measured[2], section: value}, "changed")


def test_scores_of_another_evaluation_are_refused(measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    results = measured[2]
    write_results(results, tmp_path / "a.json")
    other = copy.deepcopy(results)
    next(iter(other["sets"]["forget"]["examples"].values()))["probability"] = 0.125
    write_results(other, tmp_path / "b.json")
    scores_of(tmp_path / "b.json").replace(scores_of(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"a\.\w+\.parquet belongs to another evaluation"):
        read_results(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.\w+\.parquet is missing"):
        read_results(tmp_path / "b.json")


def test_examples_are_read_on_demand_as_a_table(measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    """Rows of the capability task belong to no set; the table has neither these rows nor their columns."""
    write_results(measured[2], tmp_path / "a.json")
    found = open_results(tmp_path / "a.json")
    assert (found.suite, found.forget_sets) == ("tiny", ("forget",))
    frame = found.examples()
    assert list(frame.columns[:2]) == ["set", "id"]
    assert not {"acc", "acc_norm", "generated"} & set(frame.columns)
    assert sorted(frame["set"]) == ["forget"] * 5 + ["retain"] * 5
    scores_of(tmp_path / "a.json").unlink()
    assert open_results(tmp_path / "a.json").scores == found.scores
    with pytest.raises(UserError, match=r"a\.\w+\.parquet is missing"):
        found.examples()


def test_numbers_have_dotted_names_at_any_depth() -> None:
    """A new section needs no code: only mappings with a value are read; controls, settings and details are skipped."""
    entry = {"value": 0.5, "low": 0.4, "high": None, "n": 7, "forgotten": "low", "settings": {"k": {"value": 3}}}
    results = {
        "schema": 2,
        "settings": {"one": {"value": 1}},
        "sets": {"forget": {"forget": True, "metrics": {"probability": entry}, "examples": {"a": {"value": 1.0}}}},
        "attacks": {"members": "forget", "auc": {"loss": {"value": 0.7, "n": 3}}},
        "forget_quality": {"forget": {"arithmetic": {"pvalue": None, "n": 3}}},
        "aggregates": {"new": {"value": 2.0, "low": 1.0, "high": 3.0}},
        "controls": {"oracle": {"perplexity": {"value": 9.0}}},
        "perplexity": None,
    }
    found = named_scores(results)
    assert list(found) == [
        "forget.probability",
        "attacks.auc.loss",
        "forget_quality.forget.arithmetic",
        "aggregates.new",
    ]
    assert vars(found["forget.probability"]) == {"value": 0.5, "low": 0.4, "high": None, "n": 7, "forgotten": "low"}
    assert found["forget_quality.forget.arithmetic"].value is None
    assert (found["aggregates.new"].low, found["aggregates.new"].high) == (1.0, 3.0)


def test_the_shipped_schema_equals_that_of_the_code() -> None:
    """The file is written by json.dumps(json_schema(), indent=1); write it again after a change of the schema."""
    assert json.loads(shipped("eval/results.schema.json").read_text()) == json_schema()


def test_controls_are_stored_next_to_the_model(measured: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, suite, target = measured
    suite = replace(suite, capability=None)
    oracle = run_suite(suite, tiny_model(seed=1), tiny_tokenizer())
    controls = {"target": target, "oracle": oracle, "sham": oracle}
    found = run_suite(suite, tiny_model(seed=2), tiny_tokenizer(), controls=controls)
    assert found["forget_quality"]["forget"]["arithmetic"]["n_oracle"] == 5
    assert set(found["controls"]) == {"target", "oracle", "sham"}
    for role, control in controls.items():
        control_now = found["controls"][role]
        assert control_now["sets"]["forget"]["metrics"] == control["sets"]["forget"]["metrics"]
        assert "examples" not in control_now["sets"]["forget"]
    assert found["controls"]["target"]["capability"]["acc"] == target["capability"]["acc"]
    assert "correct" not in found["controls"]["target"]["capability"]
    check_results(found, "with controls")


def test_controls_measured_on_other_data_are_refused(measured: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, suite, target = measured
    suite = replace(suite, capability=None)

    def run(changed: Suite, **controls: Any) -> dict[str, Any]:
        return run_suite(changed, tiny_model(), tiny_tokenizer(), controls=controls)

    fewer = replace(suite, sets={**suite.sets, "retain": SetConfig(suite.sets["retain"].data, limit=2)})
    with pytest.raises(UserError, match="the sham was not measured on the same retain set"):
        run(fewer, sham=target)
    with pytest.raises(UserError, match="the result given for the target has schema None"):
        run(suite, target={"sets": {}})
    with pytest.raises(UserError, match="judge is not a control; give one of target, oracle, sham"):
        run(suite, judge=target)
    longer = replace(suite, generation=GenerationConfig(max_new_tokens=4))
    assert "other generation settings" in run(longer, target=target)["warnings"][0]
    same = replace(suite, generation=replace(suite.generation, batch_size=3, sampling=SamplingConfig(samples=2, k=[1])))
    assert not run(same, target=target)["warnings"], "samples are drawn in addition to the greedy answers"
    lacking = copy.deepcopy(target)
    del lacking["sets"]["retain"]
    assert run(suite, oracle=lacking)["warnings"] == ["the oracle was not measured on the retain set"]


def test_spread_of_numbers() -> None:
    """1, 2, 6: mean 3, deviations −2, −1, 3, so √(14 / 2) = √7."""
    found = spread_of([1.0, math.nan, 6.0, 2.0])
    assert (found.mean, found.lowest, found.highest, found.n, found.n_nan) == (3.0, 1.0, 6.0, 3, 1)
    assert found.spread == pytest.approx(math.sqrt(7))
    assert math.isnan(spread_of([2.0]).spread)
    assert (spread_of([math.nan]).n, spread_of([math.nan]).n_nan) == (0, 1)


def test_several_seeds_give_a_mean_and_a_spread(measured: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    _, suite, _ = measured
    suite = replace(suite, capability=None)
    for seed in (0, 1, 2):
        found = run_suite(suite, tiny_model(seed=seed), tiny_tokenizer())
        write_results(found, tmp_path / f"run{seed}" / "eval" / "tiny.json")
        recipe = {"seed": seed, "output_dir": f"run{seed}", "method": {"name": "npo"}}
        (tmp_path / f"run{seed}" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folders = [tmp_path / f"run{seed}" for seed in (0, 1, 2)]
    spreads, seeds = read_seeds(folders, "tiny")
    assert seeds == [0, 1, 2]
    values = [open_results(one / "eval" / "tiny.json").scores["forget.probability"].value for one in folders]
    assert spreads["forget.probability"].mean == pytest.approx(sum(values) / 3)
    assert spreads["forget.probability"].spread > 0
    assert "model_utility.without_truth_ratio" in spreads
    write_seeds(spreads, seeds, "tiny", tmp_path / "seeds.json")
    assert json.loads((tmp_path / "seeds.json").read_text())["numbers"]["forget.probability"]["n"] == 3

    (folders[1] / "recipe.yaml").write_text(yaml.safe_dump({"seed": 1, "method": {"name": "grad_diff"}}))
    with pytest.raises(UserError, match="runs of two recipes: they differ in method"):
        read_seeds(folders, "tiny")
    (folders[1] / "recipe.yaml").write_text(yaml.safe_dump({"seed": 0, "method": {"name": "npo"}}))
    with pytest.raises(UserError, match=r"\[0, 0, 2\]: give each seed once"):
        read_seeds(folders, "tiny")
    with pytest.raises(UserError, match="at least two"):
        over_seeds([read_results(folders[0] / "eval" / "tiny.json")])
    other = read_results(folders[2] / "eval" / "tiny.json")
    with pytest.raises(UserError, match="no common mean"):
        over_seeds([other, {**other, "suite": "another"}])
