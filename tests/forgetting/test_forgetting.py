"""From a model and a file to a measured adapter: what is found, chosen, written, and what is said when something is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from memorised import SECRET
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.config import TrainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.forgetting import found as finding
from llm_forget.forgetting.found import look
from llm_forget.forgetting.order import Order
from llm_forget.forgetting.run import carry_out, forget
from llm_forget.forgetting.work import told, work_for
from llm_forget.memory.plan import Plan
from llm_forget.train.general import general_questions
from llm_forget.utils.build import load_recipe
from llm_forget.utils.shipped import shipped

runner = CliRunner()


@pytest.fixture
def order(memorised_folder: Path, tmp_path: Path) -> Order:
    return Order(str(memorised_folder / "model"), str(memorised_folder / "forget.jsonl"), to=str(tmp_path / "out"))


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package of the extra eval, so that only probabilities are measured."""
    monkeypatch.setattr(finding, "find_spec", lambda _: None)
    return


@pytest.mark.usefixtures("without_extras")
def test_a_model_and_a_file_are_enough(order: Order, tmp_path: Path) -> None:
    """Everything is measured that can be, the rest says what it needs; no text of the rows is written; it is not done twice."""
    work = work_for(look(replace(order, changes={"stop": {"neighbour_floor": 0.3}})))
    assert [one["name"] for one in work.recipe.retain.more] == ["virtual_neighbours", "general_questions"]
    done = carry_out(work, audit=False)
    assert done.record["before"]["forget"] > 0.8 > 0.5 > done.record["after"]["forget"]
    needs = {one.name.split()[0]: one.value for one in done.bars if one.reached is None}
    assert {"neighbours", "retain", "loss", "nothing"} <= set(needs)
    assert needs["neighbours"] == "needs --neighbours"
    assert done.reached is (not any(one.reached is False for one in done.bars))
    assert done.headline.startswith("FORGOTTEN" if done.reached else "NOT FORGOTTEN")
    assert done.adapter is not None
    assert (done.adapter / "adapter_model.safetensors").is_file()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    before = (done.run / "result.json").stat().st_mtime_ns
    again = carry_out(work, audit=False)
    assert (done.run / "result.json").stat().st_mtime_ns == before
    assert again.bars == done.bars
    with pytest.raises(RecipeError, match=r"holds another order \(it differs in retain, changes\)"):
        forget(
            order.model,
            order.forget,
            retain=str(Path(order.forget).with_name("retain.jsonl")),
            to=order.to,
            audit=False,
        )


def test_the_plan_says_what_is_missing_and_what_that_costs(order: Order) -> None:
    shown = runner.invoke(app, ["forget", "--model", order.model, "--forget", order.forget, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    for missing in ("--retain", "--base", "--holdout", "--oracle", "--neighbours"):
        assert f"missing     no {missing}" in shown.output
    assert "4 rows" in shown.output
    found = runner.invoke(app, ["forget", "--model", order.model, "--forget", order.forget, "--dry-run", "--json"])
    assert json.loads(found.stdout)["plan"]["recipe"]["method"] == {"name": "npo"}


def test_less_memory_gives_smaller_batches_of_the_same_step_and_then_a_message(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row takes 1 GB here, and half with checkpointing: 2.5 GB hold two rows of four, 0.6 GB one with checkpointing."""

    def planned(recipe: UnlearnRecipe, **_: object) -> Plan:
        train = recipe.train
        size = train.batch_size * (0.5e9 if train.gradient_checkpointing else 1e9)
        return Plan(size, 0, 0, 0, 0, 0, 0, 0, train.batch_size, 8, on_card=False)

    monkeypatch.setattr("llm_forget.forgetting.work.plan", planned)
    found = look(order)
    for free, size, checkpointing in ((9e9, 4, False), (2.5e9, 2, False), (0.6e9, 1, True)):
        less = work_for(replace(found, machine=replace(found.machine, free=free)))
        train = less.recipe.train
        assert (train.batch_size, train.gradient_checkpointing) == (size, checkpointing)
        assert train.batch_size * train.gradient_accumulation == 4
        assert ("micro-batches of" in " ".join(told(less))) is (size < 4)
    with pytest.raises(RecipeError, match=r"needs 0.5 GB of memory even with one row at a time, and 0.3 GB are free"):
        work_for(replace(found, machine=replace(found.machine, free=0.3e9)))


def test_the_written_recipe_is_the_one_that_would_run(order: Order, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    options = ["--model", order.model, "--forget", order.forget, "--seed", "7", "--train.schedule", "cosine"]
    shown = runner.invoke(app, ["new", str(file), *options])
    assert shown.exit_code == 0, shown.output
    text = file.read_text(encoding="utf-8")
    assert "# missing     no --oracle" in text
    assert "  # Rank of the update, r in PEFT." in text
    changed = replace(order, changes={"seed": 7, "train": {"schedule": "cosine"}})
    wanted = work_for(look(changed)).recipe
    assert load_recipe(UnlearnRecipe, file) == replace(wanted, resume=False, output_dir="runs/mine")
    assert wanted.train != TrainConfig()
    assert "already exists" in str(runner.invoke(app, ["new", str(file), *options]).exception)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/folder/here"}, "does not exist|cannot be read"),
        ({"forget": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"changes": {"retian": {"weight": 1}}}, "retian"),
        ({"changes": {"base": "x"}}, "--base"),
        ({"retain": "SAME"}, "two sets"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_is_loaded(
    order: Order, changes: dict[str, object], message: str
) -> None:
    changes = {name: order.forget if value == "SAME" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        look(replace(order, **changes))  # type: ignore[arg-type]


def test_general_questions_are_not_those_that_measure_capability() -> None:
    measured = shipped("eval/capability/general_knowledge.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {json.loads(line)["question"].casefold() for line in measured}
    own = [one.casefold() for one in general_questions()]
    assert len(set(own)) == len(own) > 64
    assert not asked & set(own)
