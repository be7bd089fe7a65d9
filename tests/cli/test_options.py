"""Test that ``--help`` of a recipe fits the terminal and lists rare fields last."""

from __future__ import annotations

from typing import Any

import pytest

from llm_forget.cli import options
from llm_forget.cli.entry import with_home
from llm_forget.cli.options import describe
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.evaluation.recipe import CapabilityRecipe, EvalRecipe
from llm_forget.utils.build import build

RECIPES = (UnlearnRecipe, FinetuneRecipe, EvalRecipe, CapabilityRecipe)


@pytest.mark.parametrize("recipe_class", RECIPES)
@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(recipe_class: Any, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = describe(recipe_class).splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) > 40


def test_rare_fields_are_last_under_their_own_heading() -> None:
    common, advanced = describe(UnlearnRecipe).split("Advanced options")
    for key in options._ADVANCED:  # a renamed field would be in neither part
        assert f"--{key}  " in advanced
        assert f"--{key}  " not in common
    assert "--train.epochs  " in common


def test_a_home_folder_is_found_in_arguments_and_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    argv = [
        "report",
        "~/runs",
        "--out=~/page.html",
        "--base",
        "~/model",
        "-q",
        "~/text",
        "--prompt=~/text",
        "a~/b",
        "~",
    ]
    assert with_home(argv) == [
        *("report", "/home/someone/runs", "--out=/home/someone/page.html", "--base", "/home/someone/model"),
        *("-q", "~/text", "--prompt=~/text", "a~/b", "~"),
    ]
    values = {
        "model": {"name": "~/model", "adapter": "~/adapter"},
        "data": {"forget": {"path": "~/forget.jsonl"}},
        "method": {"name": "~/mine.py"},
        "retain": {"name": None},
        "encoding": {"system_prompt": "~/ is home"},
        "output_dir": "~/out",
    }
    recipe = build(UnlearnRecipe, values, "test")
    assert (recipe.model.name, recipe.model.adapter) == ("/home/someone/model", "/home/someone/adapter")
    assert (recipe.data.forget.path, recipe.output_dir) == ("/home/someone/forget.jsonl", "/home/someone/out")
    assert recipe.method == {"name": "/home/someone/mine.py"}
    assert recipe.encoding.system_prompt == "~/ is home"
