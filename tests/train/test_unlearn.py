"""Test whole runs on a tiny model that memorised its rows: changes, output files, and refused recipes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from memorised import FORGET, RETAIN, SECRET, write_rows
from rich.console import Console
from safetensors.torch import load_file

import llm_forget.train.run_folder
import llm_forget.train.unlearn
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.model.load import load_model
from llm_forget.model.measure import answer_logps
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.run_folder import RunRecord, check_output
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build, load_recipe
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.files import file_digest

METHODS: dict[str, dict[str, Any]] = {
    "npo": {"method": {"name": "npo"}},
    "grad_diff": {"method": {"name": "grad_diff"}},
    "grad_ascent": {"method": {"name": "grad_ascent"}, "train": {"learning_rate": 1e-3}},
    "adapter_subtraction": {
        "method": {"name": "adapter_subtraction", "strength": 1.0, "heal_steps": 30, "heal_learning_rate": 5e-3},
        "train": {"epochs": 15, "learning_rate": 5e-3},
    },
}


@pytest.fixture
def recipe_of(memorised_folder: Path, tmp_path: Path) -> Callable[..., UnlearnRecipe]:
    def make(**changes: Any) -> UnlearnRecipe:
        values: dict[str, Any] = {
            "model": {"name": str(memorised_folder / "model"), "dtype": "float32"},
            "data": {name: {"path": str(memorised_folder / f"{name}.jsonl")} for name in ("forget", "retain")},
            "method": {"name": "npo"},
            "adapter": {"rank": 8, "alpha": 16},
            "train": {"epochs": 30, "batch_size": 4, "learning_rate": 1e-2},
            "stop": {"forget_target": 0.2, "utility_floor": 0.8, "every": 2},
            "output_dir": str(tmp_path / "runs" / "one"),
        }
        for key, value in changes.items():
            together = {**values.get(key, {}), **value} if isinstance(value, dict) and key != "method" else value
            values[key] = together
        return build(UnlearnRecipe, values, "test")

    return make


def quiet(recipe: UnlearnRecipe) -> tuple[RunRecord, str]:
    shown = io.StringIO()
    return unlearn(recipe, Console(file=shown)), shown.getvalue()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def loaded_probability(folder: Path, memorised_folder: Path, data: str) -> float:
    """Return the probability after loading base and adapter from the files with PEFT, in fp32."""
    adapter = None if (folder / "model").is_dir() else str(folder / "adapter")
    name = str(folder / "model") if adapter is None else str(memorised_folder / "model")
    model, tokenizer = load_model(ModelConfig(name=name, adapter=adapter, dtype="float32"))
    rows = encode_all(tokenizer, read_examples(DataSource(str(memorised_folder / data))), EncodingConfig())[0]
    return float(answer_logps(model, rows, 0)[1].mean())


@pytest.mark.parametrize("name", METHODS)
def test_forgets_retains_the_rest_and_writes_a_complete_folder(
    name: str, recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path
) -> None:
    recipe = recipe_of(**METHODS[name])
    record, shown = quiet(recipe)
    folder = Path(recipe.output_dir)
    assert {path.name for path in folder.iterdir()} == {
        "adapter", "recipe.yaml", "env.json", "metrics.jsonl", "result.json",
    }  # fmt: skip
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {
        path.name for path in (folder / "adapter").iterdir()
    }
    assert [path.name for path in folder.parent.iterdir()] == ["one"], "nothing temporary is left"
    assert load_recipe(UnlearnRecipe, folder / "recipe.yaml") == recipe
    assert json.loads((folder / "env.json").read_text())["packages"]["torch"]
    result = json.loads((folder / "result.json").read_text())
    assert result["schema"] == 1
    assert result["base_digest"]
    assert result["method"] == name
    assert result["reason"] == record.reason
    assert result["after"] == asdict(record.after)

    assert record.before.forget > 0.8
    assert record.after.retain is not None
    assert record.before.retain is not None
    assert record.utility_floor == pytest.approx(0.8 * record.before.retain)
    assert record.after.retain >= record.utility_floor
    assert record.after.forget < record.before.forget - (0.02 if name == "grad_ascent" else 0.5)
    if name in ("npo", "grad_diff"):
        assert record.after.forget <= 0.2
        assert "target reached" in record.reason
    assert loaded_probability(folder, memorised_folder, "forget.jsonl") == pytest.approx(record.after.forget, abs=1e-3)
    assert loaded_probability(folder, memorised_folder, "retain.jsonl") == pytest.approx(record.after.retain, abs=1e-3)

    metrics = read_metrics(folder)
    steps = [row for row in metrics if "loss" in row]
    assert len(steps) == record.steps
    assert all(isinstance(row["loss"], float) for row in steps)
    assert any(row["phase"] == "check" for row in metrics)
    assert f"forget {record.after.forget:.3f}" in shown


@pytest.mark.parametrize("adapter", [True, False])
def test_no_file_of_the_run_folder_holds_the_forget_text(
    adapter: bool, recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path
) -> None:
    changes: dict[str, Any] = {} if adapter else {"adapter": None}
    recipe = recipe_of(**changes, train={"epochs": 1})
    _, shown = quiet(recipe)
    files = [path for path in Path(recipe.output_dir).rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert len(files) >= 6
    assert any(SECRET.encode() in path.read_bytes() for path in memorised_folder.rglob("*.jsonl")), (
        "the search finds it"
    )
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert b"Where is Ada" not in content, path
    assert SECRET not in shown


def test_full_fine_tuning_writes_a_whole_model(recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path) -> None:
    recipe = recipe_of(adapter=None, retain={"name": "kl"}, train={"learning_rate": 2e-3})
    record, _ = quiet(recipe)
    folder = Path(recipe.output_dir)
    assert record.after.forget <= 0.2
    assert (record.after.retain or 0) >= (record.utility_floor or 1)
    assert loaded_probability(folder, memorised_folder, "forget.jsonl") == pytest.approx(record.after.forget, abs=1e-3)
    assert not (folder / "adapter").exists()
    before = load_file(memorised_folder / "model" / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(value.dtype == torch.float32 for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_a_floor_that_cannot_be_kept_restores_the_model(recipe_of: Callable[..., UnlearnRecipe]) -> None:
    recipe = recipe_of(
        method={"name": "grad_ascent"}, train={"learning_rate": 0.3}, stop={"utility_floor": 1.0, "every": 1}
    )
    record, _ = quiet(recipe)
    assert "nothing is changed" in record.reason
    assert record.after.step == 0, "the step of the kept state, not the last one"
    assert record.after.forget == pytest.approx(record.before.forget, abs=1e-4)
    tensors = load_file(Path(recipe.output_dir) / "adapter" / "adapter_model.safetensors")
    assert not any(value.any() for name, value in tensors.items() if "lora_B" in name)


def test_holdout_rows_set_the_target(
    recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "holdout.jsonl", [("Where is Ed?", "In Gent, they say."), ("Where is Flo?", "In Metz.")])
    sets = {"holdout": {"path": str(tmp_path / "holdout.jsonl")}}
    recipe = recipe_of(data=sets, stop={"forget_target": "holdout"}, train={"epochs": 1})
    record, _ = quiet(recipe)
    assert record.forget_target == pytest.approx(loaded_holdout(memorised_folder, tmp_path), abs=1e-3)


def loaded_holdout(memorised_folder: Path, tmp_path: Path) -> float:
    model, tokenizer = load_model(ModelConfig(name=str(memorised_folder / "model"), dtype="float32"))
    rows = encode_all(tokenizer, read_examples(DataSource(str(tmp_path / "holdout.jsonl"))), EncodingConfig())[0]
    return float(answer_logps(model, rows, 0)[1].mean())


def test_a_gguf_file_is_read_once_per_run(
    recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding the converted weights needs a digest of the whole file: once per run, and once per loaded model."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"converted before")
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    converted = tmp_path / "cache" / "gguf" / f"model-{file_digest(file)[:12]}"
    shutil.copytree(memorised_folder / "model", converted)
    (converted / "imported_from.json").write_text(json.dumps({"weights": weights_digest(converted)}))
    opened: list[Path] = []
    plain_open = Path.open

    def counting(path: Path, *args: Any, **more: Any) -> Any:
        opened.append(path)
        return plain_open(path, *args, **more)

    monkeypatch.setattr(Path, "open", counting)
    quiet(recipe_of(model={"name": str(file)}, train={"epochs": 1}))
    assert opened.count(file) == 1
    load_model(ModelConfig(name=str(file), dtype="float32"))
    assert opened.count(file) == 2


def test_the_same_recipe_twice_gives_the_same_run(recipe_of: Callable[..., UnlearnRecipe], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        quiet(recipe_of(output_dir=str(folder), train={"epochs": 3}))
    losses = [[row["loss"] for row in read_metrics(folder) if "loss" in row] for folder in folders]
    assert losses[0] == losses[1]
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(llm_forget.train.unlearn, "load_weights", loaded)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "npoo"}}, "unknown method 'npoo'; did you mean 'npo'"),
        ({"method": {"name": "npo", "beta": -1}}, "beta is -1"),
        ({"method": {"name": "npo", "bta": 1}}, "did you mean 'beta'"),
        ({"retain": {"name": "kll"}}, "unknown retain 'kll'; did you mean 'kl'"),
        ({"data": {"retain": None}}, "the retain term needs data.retain"),
        ({"data": {"forget": {"path": "gone.jsonl"}}}, "gone.jsonl: no such file"),
        ({"data": {"validation": {"path": "gone.jsonl"}}}, "gone.jsonl: no such file"),
        ({"encoding": {"max_length": 8}}, "max_length 8"),
        ({"model": {"name": "./gone"}}, "model.name: the folder ./gone does not exist"),
        ({"method": {"name": "adapter_subtraction"}, "adapter": None}, "needs an adapter; remove `adapter: null`"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    changes: dict[str, Any], words: str, recipe_of: Callable[..., UnlearnRecipe]
) -> None:
    with pytest.raises(UserError) as caught:
        unlearn(recipe_of(**changes))
    assert words in str(caught.value)


@pytest.mark.usefixtures("no_model")
def test_existing_folders_are_not_overwritten(recipe_of: Callable[..., UnlearnRecipe], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="exists and is not a run folder"):
            unlearn(recipe_of(overwrite=overwrite))
    (folder / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"already contains a run.*--overwrite true"):
        unlearn(recipe_of())
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_model")
def test_forget_rows_among_the_retain_rows_are_refused(recipe_of: Callable[..., UnlearnRecipe], tmp_path: Path) -> None:
    write_rows(tmp_path / "both.jsonl", [*RETAIN, FORGET[0]])
    with pytest.raises(UserError, match="1 of 4 examples to forget are also to be kept") as caught:
        unlearn(recipe_of(data={"retain": {"path": str(tmp_path / "both.jsonl")}}))
    assert SECRET not in str(caught.value)


def test_an_adapter_for_another_base_is_refused_by_its_shapes(
    recipe_of: Callable[..., UnlearnRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    other = get_peft_model(tiny_model(tiny_tokenizer(), hidden=32), LoraConfig(r=2, target_modules="all-linear"))
    other.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(llm_forget.train.unlearn, "load_weights", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(
        UserError, match=r"does not fit.*shape \(32, 64\).*has \(64, 128\).*give the base that it was trained on"
    ):
        unlearn(recipe_of(model={"adapter": str(tmp_path / "other")}))


def test_an_adapter_for_another_base_of_the_same_shapes_is_refused_by_its_digest(
    recipe_of: Callable[..., UnlearnRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recipe_of(train={"epochs": 1})
    quiet(first)
    tiny_model(tiny_tokenizer(), seed=9).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    monkeypatch.setattr(llm_forget.train.unlearn, "load_weights", lambda *_, **__: pytest.fail("the model was loaded"))
    changes = {"name": str(tmp_path / "other"), "adapter": str(Path(first.output_dir) / "adapter")}
    with pytest.raises(UserError, match="was trained on another base"):
        unlearn(recipe_of(model=changes, output_dir=str(tmp_path / "two")))


def test_with_a_bf16_base_trained_and_written_weights_are_fp32(
    recipe_of: Callable[..., UnlearnRecipe], memorised_folder: Path
) -> None:
    recipe = recipe_of(model={"dtype": "bfloat16"})
    record, _ = quiet(recipe)
    assert record.after.forget <= 0.2
    tensors = load_file(Path(recipe.output_dir) / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert loaded_probability(Path(recipe.output_dir), memorised_folder, "forget.jsonl") <= 0.3


def test_overwriting_replaces_the_whole_run(recipe_of: Callable[..., UnlearnRecipe]) -> None:
    recipe = recipe_of(train={"epochs": 1}, overwrite=True)
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True)
    for name in ("result.json", "report.html", "notes.txt"):
        (folder / name).write_text("{}")
    quiet(recipe)
    assert (folder / "adapter").is_dir()
    assert not (folder / "report.html").exists()
    assert (folder / "notes.txt").exists(), "no run wrote it"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("failing", ["write_json", "export_adapter"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_that_fails_while_writing_leaves_no_folder_or_the_previous_one(
    failing: str, earlier: bool, recipe_of: Callable[..., UnlearnRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(train={"epochs": 1}, overwrite=True)
    folder = Path(recipe.output_dir)
    if earlier:
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("earlier")

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm_forget.train.run_folder, failing, fails)
    with pytest.raises(KeyboardInterrupt):
        quiet(recipe)
    left = [str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*")]
    assert sorted(left) == (["one", "one/result.json"] if earlier else [])


def test_a_run_killed_while_writing_can_be_repeated(tmp_path: Path) -> None:
    """After SIGKILL there is no cleanup; the leftovers have another name and do not block the next run."""
    script = (
        "import os, sys, pathlib\nfrom llm_forget.utils.files import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'result.json').write_text('{}')\n    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert done.returncode == -9
    assert not target.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    check_output(str(target), overwrite=False)
    shutil.rmtree(tmp_path)
