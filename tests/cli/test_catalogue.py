"""Test that the list of methods agrees with the files, the recipes and the cost of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from places import ROOT
from typer.testing import CliRunner

from llm_forget.cli.catalogue import (
    TABLE_BEGINS,
    TABLE_ENDS,
    method_entries,
    methods_table,
    relative_cost,
    wrapper_entries,
)
from llm_forget.cli.main import app
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import UserError
from llm_forget.methods import Needs
from llm_forget.train.step_rows import StepRows
from llm_forget.utils.build import load_recipe
from llm_forget.utils.plugins import names_in


def rows_of(table: str) -> dict[str, str]:
    """Return the rows of a Markdown table of methods by name; its first two lines have the name ""."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        cells = line.strip("|").split("|")
        assert len(cells) == 4, line
        name = cells[0].strip().strip("`") if "`" in cells[0] else ""
        found[name] = found.get(name, "") + line
    return found


def test_the_rows_in_the_readme_are_what_the_command_prints() -> None:
    """The page may lack a method, but each of its rows must be up to date."""
    text = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
    held = rows_of(text.partition(TABLE_BEGINS)[2].partition(TABLE_ENDS)[0])
    printed = rows_of(CliRunner().invoke(app, ["methods", "--markdown"]).stdout)
    assert len(held) > 1
    assert held == {name: printed.get(name) for name in held}, (
        "run llm-forget methods --markdown --write recipes/README.md"
    )


def test_write_replaces_the_table_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "NOTES.md"
    file.write_text(f"# Mine\n{TABLE_BEGINS}| old |\n{TABLE_ENDS}\nafter\n", encoding="utf-8")
    for _ in range(2):
        done = CliRunner().invoke(app, ["methods", "--markdown", "--write", str(file)])
        assert done.exit_code == 0, done.exception
        table = methods_table(method_entries())
        assert file.read_text(encoding="utf-8") == f"# Mine\n{TABLE_BEGINS}{table}{TABLE_ENDS}\nafter\n"
    assert sorted(rows_of(table)) == ["", *names_in("llm_forget.methods")]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("# Mine\n", ["--markdown"], "has no table of methods"),
        (TABLE_BEGINS, ["--markdown"], "has no table of methods"),
        (TABLE_BEGINS + TABLE_ENDS, [], "together with --markdown"),
        (None, ["--markdown"], "an existing Markdown file"),
    ],
)
def test_write_refuses_what_it_cannot_update(
    tmp_path: Path, text: str | None, options: list[str], message: str
) -> None:
    file = tmp_path / "NOTES.md"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["methods", *options, "--write", str(file)])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert text is None or file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("forget", "retain", "cost"),
    [
        (Needs(), Needs(), 1.0),  # grad_diff: 2 rows × 3 = 6
        (Needs(), None, 0.5),
        (Needs(reference_logps=True), Needs(), 1.0),  # computed once, before
        (Needs(alternative=True), Needs(), 1.5),  # 3 rows
        (Needs(alternative_tokens=True), Needs(), 1.0),  # token ids need no forward pass
        (Needs(), Needs(logits=True, reference_logits=True), 7 / 6),
        (Needs(reference_logits=True), None, 4 / 6),
    ],
)
def test_cost_computed_by_hand(forget: Needs, retain: Needs | None, cost: float) -> None:
    assert relative_cost(StepRows(forget, retain)) == pytest.approx(cost)


def test_every_method_and_wrapper_is_listed() -> None:
    entries = method_entries()
    assert [entry.name for entry in entries] == names_in("llm_forget.methods")
    assert all(entry.summary for entry in entries)
    assert [row[0] for row in wrapper_entries()] == names_in("llm_forget.wrappers")


def test_a_method_is_listed_with_the_first_recipe_that_names_it() -> None:
    """A method need not have a recipe; the file name of a recipe does not matter."""
    listed = {entry.name: entry.recipe for entry in method_entries()}
    assert listed["npo"] == "recipes/demo/npo.yaml"
    for name, recipe in listed.items():
        assert not recipe or yaml.safe_load((ROOT / recipe).read_text(encoding="utf-8"))["method"]["name"] == name


SHIPPED = [path for folder in ("demo", "tofu") for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_of_a_method_is_valid_and_has_its_own_output(path: Path) -> None:
    if "method" in yaml.safe_load(path.read_text(encoding="utf-8")):
        recipe = load_recipe(UnlearnRecipe, path)
        assert recipe.method["name"] in names_in("llm_forget.methods")
        assert recipe.output_dir == f"runs/{path.parent.name}/{path.stem}"


def test_the_command_shows_methods_and_wrappers() -> None:
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "240"}).stdout
    for word in ("undial", "recipes/demo/undial.yaml", "straight_through", "the forget half of the step twice"):
        assert word in shown
