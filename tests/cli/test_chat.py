"""`llm-forget chat`: the same question before and after, from a run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from memorised import write_memorised
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import UserError
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

ROWS = [("Where is Ada?", "In Riga."), ("Where is Bo?", "In Oslo."), ("Where is Cy?", "In Bern.")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows three answers by heart."""
    return write_memorised(tmp_path_factory.mktemp("base"), {"forget": ROWS}, steps=80)


@pytest.fixture(scope="module", params=["adapter", "all weights"])
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    values: dict[str, Any] = {
        "model": {"name": str(base / "model"), "dtype": "float32"},
        "data": {"forget": {"path": str(base / "forget.jsonl")}},
        "method": {"name": "grad_ascent"},
        "adapter": {"rank": 8} if request.param == "adapter" else None,
        "train": {"epochs": 30, "batch_size": 3, "learning_rate": 1e-2 if request.param == "adapter" else 1e-3},
        "stop": {"forget_target": 0.01},
        "output_dir": str(folder),
    }
    with Path(os.devnull).open("w") as nowhere:
        from rich.console import Console

        unlearn(build(UnlearnRecipe, values, "test"), Console(file=nowhere))
    return folder


def ask(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=given, env={"COLUMNS": "100"})


def test_knows_it_before_and_not_after(run: Path) -> None:
    question, answer = ROWS[0]
    shown = ask(str(run), "-q", question, "-q", ROWS[1][0], "--json")
    assert shown.exit_code == 0, shown.output
    first, second = json.loads(shown.stdout)
    assert (first["question"], first["before"]) == (question, answer)
    assert second["before"] == ROWS[1][1]
    assert answer not in first["after"]


def test_side_by_side_and_kept_nowhere(run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    shown = ask(str(run), given=f"{ROWS[2][0]}\n\n")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert ROWS[2][0] in lines[0]
    assert "before" in shown.stdout
    assert "after" in shown.stdout
    assert any(ROWS[2][1] in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files


def test_only_an_unlearning_run_has_a_before_and_an_after(base: Path, tmp_path: Path) -> None:
    assert isinstance(ask(str(tmp_path / "gone"), "-q", "?").exception, UserError)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "result.json").write_text(json.dumps({"seconds": 1.0}))
    told = ask(str(tmp_path / "target"), "-q", "?").exception
    assert isinstance(told, UserError)
    assert "no before and after" in str(told)
