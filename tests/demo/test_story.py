"""Test that the demo's table comes from its suite's results, and that its data and recipes fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.cli.options import parse_command_line
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.demo import story as demo
from llm_forget.demo.splits import make_splits, write_splits
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.suite import load_suite
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.build import load_recipe
from llm_forget.utils.shipped import shipped


@pytest.mark.slow
def test_the_table_comes_from_the_results_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is compared with itself: forget quality is 1, and every cell of the table is a number."""
    pytest.importorskip("rouge_score")
    pytest.importorskip("lm_eval")
    splits = make_splits(
        forget_people=2, retain_people=2, holdout_people=1, neighbour_people=1, facts_per_person=2, seed=0
    )
    write_splits(splits, tmp_path / "runs/demo/data")
    neutral = shipped("eval/capability/neutral.txt")
    monkeypatch.chdir(tmp_path)
    overrides = {
        "perplexity.path": str(neutral),
        "perplexity.max_tokens": "64",
        "perplexity.window": "32",
        "perplexity.stride": "16",
        "capability.limit": "4",
        "generation.max_new_tokens": "2",
    }
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    first = run_suite(load_suite("demo", overrides), model, tokenizer)
    again = run_suite(load_suite("demo", overrides), model, tokenizer, controls={"oracle": first})
    rows = {"target": demo.summarise(again, 2.0), "oracle": demo.summarise(first, 4.0)}
    assert rows["target"]["forget_quality"] == pytest.approx(1.0)
    assert rows["oracle"]["forget_quality"] is None
    assert 0.0 <= rows["target"]["capability"] <= 1.0
    console = Console(width=140, record=True)
    console.print(demo.make_table(rows))
    assert "0.50" in console.export_text()  # training of the target took half as long as that of the oracle


def test_the_steps_of_the_demo_fit_together() -> None:
    """Something makes what a step needs, and its command writes the file that it is said to make."""
    left, made = demo.steps_of_demo(), set[Path]()
    while ready := [step for step in left if made.issuperset(step.needs)]:
        made.update(step.makes for step in ready)
        left = [step for step in left if step not in ready]
    assert not left
    for step in demo.steps_of_demo():
        command, *arguments = step.command
        if command == "evaluate":
            recipe = parse_command_line(EvalRecipe, arguments)
            assert recipe.model == demo.model_of(Path(recipe.output_dir).name)
            assert Path(recipe.output_dir) / "eval" / "demo.json" == step.makes
        else:
            kind = {"finetune": FinetuneRecipe, "unlearn": UnlearnRecipe}[command]
            assert Path(parse_command_line(kind, arguments).output_dir) / "result.json" == step.makes


def test_demo_refuses_a_folder_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ValueError, match="not the demo's"):
        demo._claim(tmp_path)
    assert not (tmp_path / demo.MARKER).exists()


def test_the_people_command_writes_the_data_that_the_recipes_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo", "--data-only"])
    assert done.exit_code == 0, done.output
    for source in load_recipe(FinetuneRecipe, "recipes/demo/target.yaml").data:
        assert (tmp_path / source.path).read_text().count("\n") > 4
    assert not (demo.ROOT / "target").exists()


def test_demo_recipes_read_the_files_that_the_demo_writes() -> None:
    """The oracle's recipe is the target's without the forget set, and each method starts from the target."""
    target = load_recipe(FinetuneRecipe, "recipes/demo/target.yaml")
    oracle = load_recipe(FinetuneRecipe, "recipes/demo/oracle.yaml")
    forget = str(demo.ROOT / "data" / "forget.jsonl")
    assert [source.path for source in oracle.data] == [source.path for source in target.data if source.path != forget]
    assert len(oracle.data) == len(target.data) - 1
    assert (oracle.train, oracle.adapter, oracle.encoding, oracle.seed) == (
        target.train,
        target.adapter,
        target.encoding,
        target.seed,
    )
    for method in demo.METHODS:
        recipe = load_recipe(UnlearnRecipe, f"recipes/demo/{method}.yaml")
        assert recipe.method.get("name", "default") == method
        assert recipe.model.name == demo.model_of("target").name
        assert recipe.data.forget.path == forget
        assert recipe.output_dir == str(demo.ROOT / method)
        assert recipe.encoding.system_prompt == load_suite("demo").encoding.system_prompt
