"""The list of methods: true to the files, to the recipes and to what a step really costs."""

from __future__ import annotations

import pytest
from places import ROOT
from typer.testing import CliRunner

from llm_forget.cli.catalogue import method_entries, methods_table, relative_cost, wrapper_entries
from llm_forget.cli.main import app
from llm_forget.config import UnlearnRecipe
from llm_forget.methods import Needs
from llm_forget.train.step_rows import StepRows
from llm_forget.utils.build import load_recipe
from llm_forget.utils.plugins import names_in


def test_the_readme_holds_the_table_that_the_command_prints() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- llm-forget methods --markdown -->\n", "<!-- end -->"
    held = text[text.index(begin) + len(begin) : text.index(end)]
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).stdout
    assert held == printed == methods_table(method_entries()), (
        "run llm-forget methods --markdown and put it into the README"
    )


@pytest.mark.parametrize(
    ("forget", "retain", "cost"),
    [
        (Needs(), Needs(), 1.0),  # grad_diff: 2 rows × 3 = 6
        (Needs(), None, 0.5),
        (Needs(reference_logps=True), Needs(), 1.0),  # computed once, before
        (Needs(alternative=True), Needs(), 1.5),  # 3 rows
        (Needs(alternative_tokens=True), Needs(), 1.0),  # tokens alone cost nothing
        (Needs(), Needs(logits=True, reference_logits=True), 7 / 6),
        (Needs(reference_logits=True), None, 4 / 6),
    ],
)
def test_cost_worked_by_hand(forget: Needs, retain: Needs | None, cost: float) -> None:
    assert relative_cost(StepRows(forget, retain)) == pytest.approx(cost)


def test_every_method_and_wrapper_is_listed_with_its_recipes() -> None:
    entries = {entry.name: entry for entry in method_entries()}
    assert sorted(entries) == names_in("llm_forget.methods")
    for name, entry in entries.items():
        assert entry.recipe == f"recipes/demo/{name}.yaml"
        assert entry.summary
        for folder in ("demo", "tofu"):
            recipe = load_recipe(UnlearnRecipe, ROOT / "recipes" / folder / f"{name}.yaml")
            assert recipe.method["name"] == name
            assert recipe.output_dir == f"runs/{folder}/{name}"
    assert [row[0] for row in wrapper_entries()] == names_in("llm_forget.wrappers")


def test_the_command_shows_methods_and_wrappers() -> None:
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "240"}).stdout
    for word in ("undial", "recipes/demo/undial.yaml", "straight_through", "the forget half of the step twice"):
        assert word in shown
