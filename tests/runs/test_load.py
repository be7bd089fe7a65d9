"""Run folders as a table: broken and foreign folders are named and passed over; fronts and changes by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from run_examples import write_family, write_run

from llm_forget.errors import UserError
from llm_forget.runs import compare, load_run, load_runs, pareto
from llm_forget.runs.results import read_results

UTILITY = "retain.probability"


def test_a_row_a_run_with_intervals_roles_and_directions(tmp_path: Path) -> None:
    frame = load_runs(write_family(tmp_path))
    assert frame["role"].to_dict() == {
        "grad_ascent": "unlearned",
        "npo": "unlearned",
        "oracle": "oracle",
        "target": "target",
    }
    assert frame.loc["npo", ["forget.probability", "forget.probability.n"]].tolist() == [0.15, 3]
    assert frame.loc["npo", "forget.probability.low"] == pytest.approx(0.10)
    assert frame.loc["npo", "recipe.train.epochs"] == 2
    assert frame.loc["npo", "digest.forget"] == "digest-forget"
    assert frame.attrs["directions"]["forget.probability"] == "low"


def test_broken_and_foreign_folders_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text('{"seconds": ')
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "recipe.yaml").write_text("model: {}\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("no run")
    frame = load_runs(tmp_path)
    skipped = {Path(path).name: reason for path, reason in frame.attrs["skipped"].items()}
    assert len(frame) == 4
    assert "result.json" in skipped["damaged"]
    assert "not completed" in skipped["killed"]
    assert "photos" in skipped


def test_results_that_cannot_be_read_are_told_and_the_run_stays(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "npo" / "eval" / "tiny.json").write_text("{")
    frame = load_runs(tmp_path)
    assert "not JSON" in frame.attrs["problems"]["npo"][0]
    assert frame["forget.probability"].isna().to_dict()["npo"]


@pytest.mark.slow
def test_500_runs_take_less_than_two_seconds(tmp_path: Path) -> None:
    """The folders are on one disk; the first read warms up the imports, which are not what is measured."""
    for index in range(500):
        write_run(tmp_path / "runs" / f"run{index:03}", forget=index / 500, retain=0.8, method="npo")
    for index in range(10):
        (tmp_path / "runs" / f"broken{index}").mkdir()
        (tmp_path / "runs" / f"broken{index}" / "result.json").write_text("{")
    load_runs(tmp_path / "runs" / "run000")
    start = time.perf_counter()
    frame = load_runs(tmp_path / "runs")
    seconds = time.perf_counter() - start
    assert len(frame) == 500
    assert len(frame.attrs["skipped"]) == 10
    assert seconds < 2, f"{seconds:.2f} s"


def test_the_front_holds_what_nothing_beats(tmp_path: Path) -> None:
    """Of the two, npo (0.15, 0.8) beats grad_ascent (0.3, 0.5) on both counts."""
    frame = load_runs(write_family(tmp_path))
    front = pareto(frame, utility=UTILITY)
    assert "npo" in front.index
    assert "grad_ascent" not in front.index
    with pytest.raises(UserError, match="no_such"):
        pareto(frame, utility="no_such")


def test_changes_against_the_target(tmp_path: Path) -> None:
    """0.15 − 0.9 = −0.75 for every example alike, so the paired interval is that one point."""
    changes = compare(load_runs(write_family(tmp_path)), baseline="target")
    row = changes.loc[("npo", "forget.probability")]
    assert row["change"] == pytest.approx(-0.75)
    assert row["change_low"] == pytest.approx(-0.75)
    assert row["change_high"] == pytest.approx(-0.75)


def test_scores_of_single_examples_come_from_the_file_that_the_json_names(tmp_path: Path) -> None:
    """Rows of a capability task belong to no set; scores of another evaluation are refused."""
    write_family(tmp_path)
    found = read_results(tmp_path / "npo" / "eval" / "tiny.json")
    examples = found.examples()
    assert list(examples.columns) == ["set", "id", "probability"]
    assert sorted(examples["set"].unique()) == ["forget", "retain"]
    other = tmp_path / "target" / "eval" / "tiny.parquet"
    (tmp_path / "npo" / "eval" / "tiny.parquet").write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="another evaluation"):
        found.examples()


def test_schema_1_kept_the_scores_in_the_json(tmp_path: Path) -> None:
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    one = {"forget": True, "metrics": {"probability": entry}, "examples": {"a": {"probability": 0.5}}}
    (tmp_path / "old.json").write_text(json.dumps({"schema": 1, "suite": "old", "sets": {"forget": one}}))
    found = read_results(tmp_path / "old.json")
    assert found.scores["forget.probability"].value == 0.5
    assert found.examples().to_dict("records") == [{"set": "forget", "id": "a", "probability": 0.5}]


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_runs(tmp_path / "nowhere")
