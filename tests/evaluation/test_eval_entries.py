"""Test `eval/forget_qa.py` and `eval/capability.py` from a recipe file to the results in a run folder."""

from __future__ import annotations

import errno
import re
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_examples import PLANTED, tiny_model, write_sets, write_task
from extras import needs
from peft import LoraConfig, get_peft_model

from llm_forget.cli import run
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.evaluation.results import read_results
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.build import load_recipe
from llm_forget.utils.lock import locked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_sets(tmp_path)
    write_task(tmp_path)
    sets = {
        "forget": {"data": {"path": "forget.jsonl"}},
        "retain": {"data": {"path": "retain.jsonl"}, "utility": "probability"},
    }
    suite = {"sets": sets, "generation": {"max_new_tokens": 4}, "capability": {"task": "tiny.yaml"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(suite))
    recipe = {"model": {"name": "./model", "dtype": "float32"}, "suite": "small.yaml", "output_dir": "runs/a"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def entry(name: str, argv: list[str]) -> None:
    {"forget_qa": run.evaluate, "capability": run.capability}[name](argv)


def test_forget_qa_writes_into_the_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry("forget_qa", ["--config", "recipe.yaml", "--overrides", "{sets.forget.limit: 3}"])
    shown = capsys.readouterr().out
    assert re.search(r"forget \(n = 3\)\n  probability +0\.", shown)
    assert "results: runs/a/eval/small.json" in shown
    assert "tiny (n = 6)\n  acc " in shown
    text = (folder / "runs/a/eval/small.json").read_text()
    assert PLANTED not in text + shown
    results = read_results(folder / "runs/a/eval/small.json")
    assert (results["suite"], results["sets"]["forget"]["n"]) == ("small", 3)
    # a model is indistinguishable from itself as the oracle
    entry("forget_qa", ["--config", "recipe.yaml", "--overrides", "{sets.forget.limit: 3, capability: null}",
                        "--controls.oracle", "runs/a/eval/small.json", "--output_dir", "runs/b"])  # fmt: skip
    again = read_results(folder / "runs/b/eval/small.json")
    assert again["forget_quality"]["forget"]["arithmetic"]["pvalue"] == 1
    assert again["capability"] is None
    assert again["sets"] == results["sets"]


def test_kl_of_an_adapter_is_relative_to_its_base(folder: Path) -> None:
    """The adapter is merged before measuring; without an adapter there is no KL, and a fresh adapter (B = 0) has KL 0."""
    base = tiny_model()
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "nothing")
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.fill_(0.5)
    adapted.save_pretrained(folder / "something")

    def kl(**changes: str) -> float | None:
        common = {"overrides": "{sets.forget.kl: auto, sets.retain.generate: false, capability: null}", "cache": "null"}
        results = evaluate(load_recipe(EvalRecipe, folder / "recipe.yaml", {**common, **changes}))
        found = results["sets"]["forget"]["metrics"].get("kl_to_target")
        return None if found is None else float(found["value"])

    assert kl() is None
    assert kl(**{"model.adapter": "nothing"}) == pytest.approx(0, abs=1e-6)
    moved = kl(**{"model.adapter": "something"})
    assert moved is not None
    assert moved > 1e-4
    assert kl(**{"model.adapter": "something", "target.name": "./model", "target.dtype": "float32"}) == pytest.approx(
        moved
    )


def test_capability_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "./model"}, "output_dir": "runs/c"}))
    entry("capability", ["--config", "recipe.yaml", "--task", "tiny.yaml", "--limit", "4"])
    assert re.search(r"tiny \(n = 4\)\n  acc +0\.", capsys.readouterr().out)
    results = read_results(folder / "runs/c/eval/capability-tiny.json")
    assert results["capability"]["n"] == len(results["capability"]["correct"]) == 4


def test_mistakes_are_reported_before_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_forget.evaluation import evaluate as module

    monkeypatch.setattr(module, "load_model", lambda _: pytest.fail("the model was loaded"))
    recipe = load_recipe(EvalRecipe, folder / "recipe.yaml", {"controls.oracle": "nowhere.json"})
    with pytest.raises(RecipeError, match=r"oracle: nowhere\.json cannot be read.*run this suite on the oracle first"):
        evaluate(recipe)
    (folder / "nowhere.json").write_text("{")
    with pytest.raises(RecipeError, match="is not JSON"):
        evaluate(recipe)
    with pytest.raises(RecipeError, match="did you mean 'sets'"):
        evaluate(load_recipe(EvalRecipe, folder / "recipe.yaml", {"overrides": "{set: 3}"}))
    with pytest.raises(RecipeError, match="did you mean 'suite'"):
        load_recipe(EvalRecipe, folder / "recipe.yaml", {"suit": "x"})


def test_benchmarks_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "./model"}, "output_dir": "runs/d"}))
    entry("capability", ["--config", "recipe.yaml", "--benchmarks", "{tasks: [tiny.yaml], limit: 3}"])
    assert re.search(r"tiny \(n = 3\)\n  acc +0\.", capsys.readouterr().out)
    results = read_results(folder / "runs/d/eval/capability-benchmarks.json")
    assert results["benchmarks"]["tiny"]["acc"]["n"] == 3


@needs("rouge_score")
@pytest.mark.parametrize("name", ["forget_qa", "capability"])
def test_a_second_evaluation_or_a_running_run_is_refused_at_the_start(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder cannot be written. The model does not exist, so that anything else would be told first."""
    more = (
        ["--task", "tiny.yaml", "--output_dir"] if name == "capability" else ["--suite", "small.yaml", "--output_dir"]
    )
    start = partial(entry, name, ["--model.name", "./gone", *more, "runs/a"])
    result = "capability-tiny" if name == "capability" else "small"
    said: list[str] = []

    def second() -> None:
        try:
            start()
        except UserError as error:
            said.append(str(error))

    def in_another_thread() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    (folder / "runs" / "a" / "eval").mkdir(parents=True)
    with locked(folder / "runs" / "a" / "eval" / f"{result}.json"):
        in_another_thread()
    with locked(folder / "runs" / "a"):
        in_another_thread()
    assert len([one for one in said if "is being written by process" in one]) == 2
    with locked(folder / "runs" / "a" / "eval" / "other.json"), locked(folder / "runs" / "a", shared=True):
        in_another_thread()
    assert "gone does not exist" in said[-1]
    for place in ("/proc/x", "small.yaml/below"):
        with pytest.raises(UserError, match=r"output_dir: .* cannot be written"):
            entry(name, ["--model.name", "./gone", *more, place])


def test_a_disk_that_is_full_during_an_evaluation_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llm_forget.evaluation.evaluate.write_results", full)
    with pytest.raises(UserError, match=r"small\.json cannot be written: No space left on device.*Free disk space"):
        entry("forget_qa", ["--config", "recipe.yaml", "--overrides", "{sets.forget.limit: 1, capability: null}"])


@pytest.mark.parametrize("key", ["limit", "batch_size"])
def test_numbers_of_the_capability_test_are_checked(key: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=f"{key} is 0; give 1 or more"):
        entry("capability", ["--model.name", "./model", "--output_dir", "runs/a", f"--{key}", "0"])
    with pytest.raises(RecipeError, match=f"{key} is 0; give 1 or more"):
        entry("forget_qa", ["--config", "recipe.yaml", "--overrides", f"{{capability.{key}: 0}}"])
