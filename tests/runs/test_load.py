"""Test run folders as a table: broken and foreign folders are listed and skipped; fronts and changes computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from run_examples import write_family, write_run

from llm_forget.errors import UserError
from llm_forget.report.tables import metric_table
from llm_forget.runs import compare, load_run, load_runs, metrics_of, pareto
from llm_forget.runs.load import Run

UTILITY = "retain.probability"


def test_one_row_per_run_with_intervals_roles_and_directions(tmp_path: Path) -> None:
    frame = load_runs(write_family(tmp_path))
    assert frame["role"].to_dict() == {
        "grad_ascent": "unlearned",
        "npo": "unlearned",
        "oracle": "oracle",
        "target": "target",
    }
    assert frame.loc["npo", ["forget.probability", "forget.probability.n"]].tolist() == [0.15, 39]
    assert frame.loc["npo", "forget.probability.low"] == pytest.approx(0.10)
    assert frame.loc["npo", "recipe.train.epochs"] == 2
    assert frame.loc["npo", "digest.forget"] == "digest-forget"
    assert frame.attrs["directions"]["forget.probability"] == "low"


def test_broken_and_foreign_folders_are_listed_and_skipped(tmp_path: Path) -> None:
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


def test_unreadable_results_are_reported_and_the_run_is_kept(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "npo" / "eval" / "tiny.json").write_text("{")
    frame = load_runs(tmp_path)
    assert "not JSON" in frame.attrs["problems"]["npo"][0]
    assert frame["forget.probability"].isna().to_dict()["npo"]


def test_broken_folders_among_many_runs_are_passed_over(tmp_path: Path) -> None:
    for index in range(40):
        write_run(tmp_path / "runs" / f"run{index:03}", forget=index / 40, retain=0.8, method="npo")
    for index in range(10):
        (tmp_path / "runs" / f"broken{index}").mkdir()
        (tmp_path / "runs" / f"broken{index}" / "result.json").write_text("{")
    frame = load_runs(tmp_path / "runs")
    assert len(frame) == 40
    assert len(frame.attrs["skipped"]) == 10


def test_the_front_has_the_runs_that_no_run_beats(tmp_path: Path) -> None:
    """Run npo (0.15, 0.8) beats grad_ascent (0.3, 0.5) in both metrics."""
    frame = load_runs(write_family(tmp_path))
    front = pareto(frame, utility=UTILITY)
    assert "npo" in front.index
    assert "grad_ascent" not in front.index
    with pytest.raises(UserError, match="no_such"):
        pareto(frame, utility="no_such")


def test_an_attack_is_judged_by_its_distance_from_the_oracle() -> None:
    """AUCs of 0.5 (the oracle's 0.46 + 0.04), 0.3 (− 0.16) and 0.7 (+ 0.24): a low one is a trace as well."""
    rows = {"near": (0.5, 0.8), "below": (0.3, 0.7), "above": (0.7, 0.9)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["attacks.auc.loss", UTILITY])
    frame["role"] = "unlearned"
    frame.loc["oracle"] = [0.46, 0.9, "oracle"]
    frame.attrs["directions"] = {"attacks.auc.loss": "oracle", UTILITY: "none"}
    assert list(pareto(frame, forget="attacks.auc.loss", utility=UTILITY).index) == ["near", "above"]
    without = frame.drop("oracle")
    without.attrs = frame.attrs
    assert list(pareto(without, forget="attacks.auc.loss", utility=UTILITY).index) == ["near", "above"]
    assert "below" in pareto(frame, forget="attacks.auc.loss", utility=UTILITY, forgotten="low").index


def test_changes_against_the_target(tmp_path: Path) -> None:
    """The change is 0.15 − 0.9 = −0.75 for every example, so the paired interval has zero width."""
    changes = compare(load_runs(write_family(tmp_path)), baseline="target")
    row = changes.loc[("npo", "forget.probability")]
    assert row["change"] == pytest.approx(-0.75)
    assert row["change_low"] == pytest.approx(-0.75)
    assert row["change_high"] == pytest.approx(-0.75)


def test_an_unknown_section_is_in_the_table(tmp_path: Path) -> None:
    path = write_family(tmp_path) / "npo" / "eval" / "tiny.json"
    raw = json.loads(path.read_text())
    raw["calibration"] = {"error": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 3, "forgotten": "low"}}
    path.write_text(json.dumps(raw))
    frame = load_runs(tmp_path)
    assert "calibration.error" in metrics_of(frame)
    shown = [f"calibration.error{end}" for end in ("", ".low", ".high", ".n")]
    assert frame.loc["npo", shown].tolist() == [0.25, 0.2, 0.3, 3]
    assert frame["calibration.error"].isna().sum() == 3
    assert compare(frame).loc[("npo", "calibration.error"), "value"] == 0.25
    table = metric_table(frame, None, "npo", None, None)
    assert ["calibration.error", "0.250", "3"] in [[cell.text for cell in row] for row in table.rows]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_runs(tmp_path / "nowhere")


def test_the_kept_state_is_a_check_of_its_own_only_if_it_was_not_measured_before() -> None:
    """Otherwise a plot of the checks would draw a line back to it."""
    start, later = ({"step": step, "forget": 0.9 - step / 10, "retain": 0.8} for step in (0, 4))
    healed = {**later, "forget": 0.4}
    for after, steps in ((start, [0, 4]), (later, [0, 4]), (healed, [0, 4, 4])):
        run = Run(Path(), "", "unlearn", {}, {"before": start, "after": after}, {}, {}, [{"phase": "check", **later}])
        assert run.checks()["step"].tolist() == steps
