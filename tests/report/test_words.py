"""Test the verdict on run folders: which results it reads, and that page and command agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_examples import write_family, write_run
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.errors import UserError
from llm_forget.report.comparison import load_around, load_comparison
from llm_forget.report.page import write_report
from llm_forget.report.tables import metric_table
from llm_forget.report.words import judge_run
from llm_forget.runs import Run, load_run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    return {run.name: run for run in load_comparison([write_family(tmp_path / "runs")]).runs}


def test_the_given_runs_are_the_controls(runs: dict[str, Run]) -> None:
    """0.15 is 6 % of the way from the oracle's 0.1 to 0.9, and 0.3 is 25 % of it; the second run loses 0.3 of 0.8.

    The general-knowledge task has two questions.
    """
    found = judge_run(runs["npo"], target=runs["target"], oracle=runs["oracle"])
    assert found.level == 3
    assert found.headline == (
        "As if never seen: in every forget metric that can tell, within a fifth of what was there. "
        "Too few rows to tell whether it is kept: arc accuracy; about 5,500 would do. Kept within 5%: retain."
    )
    found = judge_run(runs["grad_ascent"], target=runs["target"], oracle=runs["oracle"])
    assert found.headline.startswith(
        "25 % of what the target knew is left (forget: probability of the right answer). Harmed: retain. Too few"
    )
    assert judge_run(runs["npo"], oracle=runs["oracle"]).headline.startswith("Not judged: no results of the target")
    assert judge_run(runs["npo"], target=runs["target"], suite="another").level is None


def test_examples_of_both_runs_are_paired(runs: dict[str, Run]) -> None:
    found = judge_run(runs["grad_ascent"], target=runs["target"], oracle=runs["oracle"])
    assert "change -0.300 [-0.300, -0.300]" in next(one.text for one in found.findings if one.part == "retain")


def test_controls_in_the_results_are_used_if_no_run_is_given(runs: dict[str, Run]) -> None:
    file = runs["npo"].path / "eval" / "tiny.json"
    stored = json.loads(file.read_text())
    stored["controls"] = {
        role: {"sets": json.loads((runs[role].path / "eval" / "tiny.json").read_text())["sets"]}
        for role in ("target", "oracle")
    }
    file.write_text(json.dumps(stored))
    assert judge_run(load_run(runs["npo"].path)).level == 3


def test_controls_are_not_judged(runs: dict[str, Run]) -> None:
    found = judge_run(runs["oracle"], target=runs["target"], oracle=runs["oracle"])
    assert found.headline == "This run is the oracle, which other runs are compared with."


def test_without_an_evaluation_the_samples_of_the_run_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    result = {"method": "npo", "before": {"forget": 0.9, "retain": None}, "after": {"forget": 0.1, "retain": None}}
    (folder / "result.json").write_text(json.dumps(result))
    found = judge_run(load_run(folder))
    assert found.headline == "Not judged: the run was not evaluated."
    assert found.notes == [
        "forget: on the run's own sample the probability of the right answer is 0.100 (before unlearning 0.900)."
    ]


def test_what_a_run_found_not_known_before_is_on_its_page(runs: dict[str, Run], tmp_path: Path) -> None:
    folder = runs["npo"].path
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "known_before": False}))
    assert judge_run(load_run(folder)).notes[0].startswith("Not known before, by the run's own sample")
    assert "Not known before, by the run&#39;s own sample" in write_report(folder, tmp_path / "page.html").read_text()


def test_page_and_command_print_the_same_verdict_once(runs: dict[str, Run], tmp_path: Path) -> None:
    root = runs["npo"].path.parent
    headline = judge_run(runs["npo"], target=runs["target"], oracle=runs["oracle"]).headline
    done = CliRunner().invoke(app, ["compare", str(root), "--table-only"])
    assert f"npo: {headline}" in done.stdout
    page = write_report(runs["npo"].path, tmp_path / "page.html").read_text()
    assert page.count(headline) == 1
    assert page.count("forget: probability of the right answer is") == 1


def test_the_table_of_a_run_shows_the_number_of_examples(runs: dict[str, Run]) -> None:
    """All runs in the table have a count, so pandas stores it as numpy integers."""
    found = load_around(runs["npo"].path)
    table = metric_table(found.frame, found.changes(), "npo", found.target, found.oracle)
    (row,) = [row for row in table.rows if row[0].text == "forget.probability"]
    assert [cell.text for cell in row[1:]] == ["0.900", "0.150", "-0.750", "0.100", "39"]


def test_target_and_oracle_are_siblings_unless_given(runs: dict[str, Run], tmp_path: Path) -> None:
    root = runs["npo"].path.parent
    found = load_around(root / "npo")
    assert (found.runs[0].name, found.target, found.oracle) == ("npo", "target", "oracle")
    assert list(found.frame.index) == ["npo", "target", "oracle"]
    write_run(root / "oracle-2", forget=0.2, retain=0.8)
    assert load_around(root / "npo").oracle is None, "there are two"
    assert load_around(root / "npo", oracle=root / "oracle-2").oracle == "oracle-2"
    with pytest.raises(UserError, match=r"runs: holds no run|runs: .*compare"):
        load_around(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        load_around(root / "npo", oracle=tmp_path / "empty")
