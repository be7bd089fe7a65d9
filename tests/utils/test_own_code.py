"""Test that code which a recipe names runs only if it is what the recipe says, after a word, and never to plan a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from small_run import small_values, write_things

from llm_forget.cli.entry import run_entry
from llm_forget.cli.main import app
from llm_forget.errors import RecipeError
from llm_forget.model.load import locate_model
from llm_forget.utils.own_code import announce, may_define, module_source, without_code
from llm_forget.utils.plugins import find_class

METHODS = "llm_forget.methods"
MARK = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
MINE = """
from dataclasses import dataclass
from typing import ClassVar
from llm_forget.methods import Needs
@dataclass(frozen=True)
class Mine:
    needs: ClassVar = Needs()
    def forget_loss(self, forget):
        return forget.logps
"""


def test_code_is_announced_once_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MARK + "import sys; print('it runs', file=sys.stderr)\n" + MINE)
    for _ in range(2):
        find_class(METHODS, str(file), "forget_loss")
    told = capsys.readouterr().err
    assert told.index(f"note: running the code in {file}") < told.index("it runs")
    assert told.count("note:") == 1


@pytest.mark.parametrize(
    "text", ["", "import os\n", "class A:\n    def other(self): pass\n", "def forget_loss(): pass\n"]
)
def test_a_file_that_is_no_method_is_not_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text(MARK + text)
    with pytest.raises(RecipeError, match=r"0 dataclasses with a `forget_loss`.*was not run"):
        find_class(METHODS, str(tmp_path / "setup.py"), "forget_loss")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["idlelib.idle", "antigravity.x", "lib2to3.pgen2.driver", "this.is.nothing", "os.path"]
)
def test_an_installed_module_is_not_imported_by_a_typo(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(RecipeError):
        find_class(METHODS, name, "forget_loss")
    assert not {one for one in set(sys.modules) - before if one.startswith(name.partition(".")[0])}


def test_parents_of_a_module_are_not_imported_to_look_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "loud" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "loud" / "__init__.py").write_text(MARK)
    (inner / "__init__.py").write_text("")
    (inner / "mine.py").write_text(MINE)
    (inner / "model.gguf").write_bytes(b"no GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert module_source("loud.inner.mine") == inner / "mine.py"
    assert module_source("loud.inner") == inner / "__init__.py"
    assert module_source("loud.gone") is None
    for name in ("loud.gone", "loud..inner", "..", "", "loud.inner.mine", "1x", "a b"):
        with pytest.raises(RecipeError, match=r"model\.name: "):
            locate_model(f"package:{name}")
    assert not (tmp_path / "loud" / "ran").exists()


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (MINE, True),
        ("from llm_forget.methods.npo import NPO\nclass A(NPO): pass\n", True),
        ("import llm_forget.methods.npo as base\nclass A(base.NPO): pass\n", True),
        ("from dataclasses import dataclass\nfrom mine import B\n@dataclass\nclass A(B): pass\n", True),
        ("class A:\n    forget_loss = print\n", True),
        ("if True:\n    class A:\n        def forget_loss(self): pass\n", True),
        ("from tkinter import Tk\nclass A(Tk): pass\n", False),
        ("forget_loss = 1\n", False),
    ],
)
def test_a_class_is_recognised_by_its_text(text: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    assert may_define(tmp_path / "a.py", "forget_loss") is fits


def test_plan_runs_no_code_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = small_values(write_things(tmp_path), tmp_path / "v")
    values["method"] = {"name": str(tmp_path / "mine.py")}
    (tmp_path / "mine.py").write_text(MARK + MINE)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))

    def plan(*more: str) -> int:
        with pytest.raises(SystemExit) as ended:
            run_entry(app, ["plan", "--config", str(tmp_path / "recipe.yaml"), "--cpu", *more])
        return int(ended.value.code or 0)

    assert plan() == 2
    assert "mine.py, which is not run here; add --run-code if you trust it" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert plan("--run-code") == 0
    assert (tmp_path / "ran").exists()


def test_a_context_without_code_is_left_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="do something"), without_code("do something"):
        announce("x\x1b[31m.py")
    announce("x\x1b[31m.py")
    assert "\x1b" not in capsys.readouterr().err
