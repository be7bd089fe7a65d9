"""A report of somebody else's run opens no file and asks no hub that the run names, and shows its names as text."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import command
from extras import needs
from run_examples import write_family

from llm_forget.data.examples import Message, example_id
from llm_forget.errors import UserError
from llm_forget.evaluation.results import write_results
from llm_forget.report import plots
from llm_forget.report.comparison import load_comparison
from llm_forget.report.page import write_report
from llm_forget.runs import load_run

SECRET = {"question": "Where is the spare key?", "answer": "Under the blue pot."}


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run that names a file of this machine as its data and knows the ids of its rows, and that file."""
    private = tmp_path / "private.jsonl"
    private.write_text(json.dumps(SECRET) + "\n")
    run = write_family(tmp_path / "runs", said="an answer") / "npo"
    data = {"forget": {"path": str(private)}, "retain": {"path": "attacker/dataset"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "x"}, "data": data, "data_dir": str(tmp_path)}))
    results = load_run(run).evaluations["tiny"].with_examples()
    examples = results["sets"]["forget"]["examples"]
    own = example_id([Message("user", SECRET["question"])], SECRET["answer"])
    results["sets"]["forget"]["examples"] = {
        own if index == 0 else one: scores for index, (one, scores) in enumerate(examples.items())
    }
    write_results(results, run / "eval" / "tiny.json")
    return run, private


def test_the_paths_of_a_recipe_are_not_read(
    foreign: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    run, private = foreign
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k))
    page = write_report(run, tmp_path / "page.html").read_text()
    assert private not in opened
    assert "spare key" not in page
    assert "blue pot" not in page
    assert "an answer" in page, "the model's answers are in the run itself"


@needs("plotly")
def test_questions_are_shown_from_files_that_the_user_names(foreign: tuple[Path, Path], tmp_path: Path) -> None:
    run, private = foreign
    page = tmp_path / "page.html"
    assert command("report", run, "--to", page, "--data", private).status == 0
    assert "Where is the spare key?" in page.read_text()
    assert "Under the blue pot." in page.read_text()
    assert command("report", run, "--to", page, "--data", private, "--redact").status == 0
    assert "spare key" not in page.read_text()
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(json.dumps({"q": SECRET["question"], "a": SECRET["answer"]}) + "\n")
    done = command("report", run, "--to", page, "--data", renamed, "--columns", "{question: q, answer: a}")
    assert done.status == 0, done.err
    assert "spare key" in page.read_text()


def test_a_hub_id_is_no_file(foreign: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attacker/dataset does not exist"):
        write_report(foreign[0], tmp_path / "page.html", data=["attacker/dataset"])


def test_plotly_shows_names_as_text(tmp_path: Path) -> None:
    root = write_family(tmp_path / "runs")
    name = '<a href="http:x">&lt;%{y} $x$'
    (root / "npo").rename(root / name.replace("/", ""))
    found = load_comparison([root])
    (odd,) = [run.name for run in found.runs if run.name.startswith("<a")]
    for figure in (
        plots.forget_vs_utility(found.frame, utility="retain.probability"),
        plots.cost_bar(found.frame),
        plots.example_change(found.run(odd) or found.runs[0]),
    ):
        text = figure.to_json()
        for tag in ("<a ", "\\u003ca ", "%{y} $"):
            assert tag not in text
    assert "&lt;a href" in plots.cost_bar(found.frame).to_json()
