"""Test the Python API: same numbers as with recipes, no files unless requested, and helpful errors."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memorised
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from places import ROOT
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import llm_forget
from llm_forget import evaluate, unlearn
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.evaluation.evaluate import evaluate as evaluate_recipe
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.model.load import load_model
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn as unlearn_recipe
from llm_forget.utils.build import build

SECRET = memorised.SECRET
FORGET, RETAIN = ([{"question": q, "answer": a} for q, a in rows] for rows in (memorised.FORGET, memorised.RETAIN))
SETTINGS: dict[str, Any] = {
    "adapter": {"rank": 8, "alpha": 16},
    "train": {"epochs": 10, "batch_size": 4, "learning_rate": 1e-2},
    "stop": {"forget_target": 0.2, "utility_floor": 0.0, "every": 2},
}
MODEL = {"dtype": "float32", "attention": "sdpa"}
TOKENIZER = tiny_tokenizer()
Load = Callable[[], Any]


@pytest.fixture(scope="module")
def folder(memorised_folder: Path) -> Path:
    return memorised_folder


@pytest.fixture
def load(folder: Path) -> Load:
    return lambda: load_model(ModelConfig(str(folder / "model"), **MODEL))[0]  # type: ignore[arg-type]


def quietly(*args: Any, **settings: Any) -> Any:
    return unlearn(*args, console=Console(file=io.StringIO()), **settings)


def recipe_run(folder: Path, target: Path, **changes: Any) -> Any:
    values = {
        "model": {"name": str(folder / "model"), **MODEL},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        **SETTINGS,
        "output_dir": str(target),
        **changes,
    }
    return unlearn_recipe(build(UnlearnRecipe, values, "test"), Console(file=io.StringIO()))


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measurements of each step, without times."""
    return [{key: value for key, value in row.items() if "runtime" not in key and "second" not in key} for row in rows]


@pytest.mark.parametrize("method", ["npo", "adapter_subtraction"])
def test_api_and_recipe_give_the_same_losses_and_weights(method: str, folder: Path, load: Load, tmp_path: Path) -> None:
    """Bit for bit: the same rows in the same order, the same seeds, the same code."""
    record = recipe_run(folder, tmp_path / "recipe", method={"name": method})
    model = load()
    torch.manual_seed(99)  # random numbers drawn earlier must not matter
    rows = {"forget": Dataset.from_list(FORGET), "retain": RETAIN}
    result = quietly(model, TOKENIZER, **rows, method=method, output_dir=tmp_path / "python", **SETTINGS)

    written = [json.loads(line) for line in (tmp_path / "recipe" / "metrics.jsonl").read_text().splitlines()]
    assert steps(json.loads(json.dumps(result.metrics))) == steps(written)
    assert result.record.before == record.before
    assert result.record.after == record.after
    assert result.record.data_digests == record.data_digests
    ours, theirs = (load_model_adapter(tmp_path / name) for name in ("python", "recipe"))
    assert ours.keys() == theirs.keys()
    for name, product in ours.items():
        assert torch.equal(product, theirs[name]), name


def load_model_adapter(run: Path) -> dict[str, torch.Tensor]:
    """Return the product of the factors for each layer; the scales of single factors may differ."""
    scale = json.loads((run / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    factor = scale["lora_alpha"] / scale["r"]
    return {
        name: factor * (tensors[name.replace("lora_A", "lora_B")] @ value)
        for name, value in tensors.items()
        if "lora_A" in name
    }


def test_the_given_model_gets_the_adapter_and_is_unchanged_without_it(load: Load, tmp_path: Path) -> None:
    model, batch = load(), torch.tensor([[5, 6, 7, 8]])
    before = model(batch).logits
    result = quietly(model, TOKENIZER, forget=FORGET, retain=RETAIN, method="npo", **SETTINGS)
    assert isinstance(result.model, PeftModel)
    assert not result.model.training
    assert not torch.allclose(result.model(batch).logits, before)
    with result.model.disable_adapter():
        assert torch.equal(result.model(batch).logits, before)
    assert result.record.after.forget < 0.5 < result.record.before.forget
    for words in ("npo", "forget probability 0.9", "→", result.reason):
        assert words in repr(result)
    assert SECRET not in repr(result)
    assert set(result.frame()["phase"]) == {"train", "check"}


def test_nothing_is_written_without_a_folder(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "save_steps": 1}}
    result = quietly(load(), TOKENIZER, forget=FORGET, retain=RETAIN, **settings)
    evaluate(result.model, TOKENIZER, forget=FORGET, metrics=["probability"])
    assert result.output_dir is None
    assert list(tmp_path.iterdir()) == []


def test_train_settings_may_be_top_level_and_data_may_be_a_plain_file(folder: Path, load: Load) -> None:
    settings = {"adapter": SETTINGS["adapter"], "stop": SETTINGS["stop"]}
    rows = {name: folder / f"{name}.jsonl" for name in ("forget", "retain")}
    alone = quietly(load(), TOKENIZER, **rows, **SETTINGS["train"], **settings)
    nested = quietly(load(), TOKENIZER, **rows, train=SETTINGS["train"], **settings)
    assert alone.record.after == nested.record.after
    assert alone.record.steps == nested.record.steps <= 10


def test_adapters_of_a_peft_model_are_merged_first(load: Load) -> None:
    """The reference is the model with its adapters, as for ``model.adapter`` in a recipe, and not their base."""
    torch.manual_seed(3)
    given = get_peft_model(load(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    batch = torch.tensor([[5, 6, 7, 8]])
    before = given.eval()(batch).logits
    result = quietly(given, TOKENIZER, forget=FORGET, retain=RETAIN, **SETTINGS)
    with result.model.disable_adapter():
        assert torch.allclose(result.model(batch).logits, before, atol=1e-4)
    assert list(result.model.peft_config) == ["default"]


def test_all_weights_can_be_trained_from_a_frozen_bf16_model(load: Load) -> None:
    model = load().to(torch.bfloat16).requires_grad_(False)
    settings = {**SETTINGS, "adapter": None, "train": {**SETTINGS["train"], "learning_rate": 1e-3}}
    result = quietly(model, TOKENIZER, forget=FORGET, retain=RETAIN, **settings)
    assert isinstance(result.model, LlamaForCausalLM)
    assert all(value.dtype == torch.float32 for value in result.model.parameters())
    assert result.record.after.forget < result.record.before.forget


def test_scores_equal_those_of_the_suite_custom(folder: Path, load: Load, tmp_path: Path) -> None:
    off = {"perplexity": None, "capability": None, "metrics": ["probability", "rouge", "truth_ratio"]}
    recipe = build(
        EvalRecipe,
        {
            "model": {"name": str(folder / "model"), **MODEL},
            "suite": "custom",
            "data_dir": str(folder),
            "output_dir": str(tmp_path),
            "overrides": off,
        },
        "test",
    )
    theirs = evaluate_recipe(recipe)
    given = {"forget": Dataset.from_list(FORGET), "retain": RETAIN}
    scores = evaluate(load(), TOKENIZER, **given, metrics=off["metrics"])
    for name in given:
        assert scores.results["sets"][name]["metrics"] == theirs["sets"][name]["metrics"]
        assert scores.results["sets"][name]["examples"] == theirs["sets"][name]["examples"]
    assert scores.results["settings"] == theirs["settings"]

    again = evaluate(load(), TOKENIZER, **given, metrics=off["metrics"], target=scores, oracle=theirs)
    frame = again.frame()
    assert {"target", "oracle"} <= set(frame.columns)
    assert (frame["target"].dropna() == frame["value"].dropna()).all()
    assert "forget probability" in repr(again)
    assert SECRET not in repr(again) + json.dumps(again.results)
    assert len(again.examples("forget")) == len(FORGET)
    again.save(tmp_path / "mine.json")
    kept = evaluate(load(), TOKENIZER, **given, metrics=off["metrics"], target=tmp_path / "mine.json")
    assert list(kept.frame()["target"].dropna()) == list(frame["value"].dropna())


def test_an_oracle_measured_on_other_rows_is_refused(load: Load) -> None:
    other = evaluate(load(), TOKENIZER, forget=FORGET[:2], metrics=["probability"])
    with pytest.raises(UserError, match="same forget set"):
        evaluate(load(), TOKENIZER, forget=FORGET, metrics=["probability"], oracle=other)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"epoch": 3}, RecipeError, "epoch: unknown key"),
        ({"method": "npoo"}, RecipeError, "did you mean 'npo'"),
        ({"method": {"name": "npo", "bta": 1}}, RecipeError, "did you mean 'beta'"),
        ({"epochs": 3, "train": {"epochs": 4}}, RecipeError, "epochs was given directly and in train"),
        ({"data": {}}, RecipeError, "data is not a keyword here"),
        ({"forget": []}, DataError, "holds no rows"),
        ({"forget": ["Where?"]}, DataError, "forget, row 1: a str, not a mapping"),
        ({"forget": [{"q": "a", "a": "b"}]}, DataError, "the columns found are q, a"),
        ({"forget": DatasetDict(train=Dataset.from_list(FORGET))}, DataError, "one split of a DatasetDict"),
        ({"forget": RETAIN}, DataError, "are also to be kept"),
        ({"retain": None, "retain_term": "kl"}, RecipeError, "needs data.retain"),
    ],
)
def test_mistakes_are_refused_with_a_remedy_and_without_data_text(
    changes: dict[str, Any], error: type[Exception], words: str, load: Load
) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        quietly(load(), TOKENIZER, **{"forget": FORGET, "retain": RETAIN, **changes})
    assert SECRET not in str(caught.value)


def test_models_that_cannot_be_trained_are_refused(load: Load) -> None:
    for model, words in ((load().half(), "float16"), ("a/name", "give a loaded model")):
        with pytest.raises(RecipeError, match=words):
            quietly(model, TOKENIZER, forget=FORGET, retain=RETAIN)


def test_a_recipe_without_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="output_dir is empty"):
        recipe_run(folder, folder, output_dir="")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, llm_forget; print('torch' in sys.modules, 'unlearn' in dir(llm_forget))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "True",
    ]
    with pytest.raises(AttributeError):
        _ = llm_forget.remember  # type: ignore[attr-defined]


def test_the_readme_block_runs(load: Load) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(from llm_forget import.*?)```", readme, flags=re.DOTALL)
    names: dict[str, Any] = {
        "model": load(),
        "tokenizer": TOKENIZER,
        "forget_rows": Dataset.from_list(FORGET),
        "retain_rows": Dataset.from_list(RETAIN),
        "unseen_rows": [{**row, "question": f"{row['question']} Really?"} for row in RETAIN],
        "base_model": tiny_model(TOKENIZER, seed=3),
    }
    exec(block, names)
    frame = names["after"].frame()
    assert set(frame["set"]) == {"forget", "retain"}
    assert names["result"].record.after.forget <= names["result"].record.before.forget


def test_a_bf16_model_can_be_used_after_unlearning_without_autocast() -> None:
    """The base is in bf16 and the adapter in fp32: scores outside the training's autocast are the run's own, rounded."""
    tokenizer = tiny_tokenizer()
    rows = [{"question": f"Where is {i}?", "answer": f"In town {i * 7}."} for i in range(4)]
    kept = [{"question": f"What is {i}?", "answer": f"It is {i * 3}."} for i in range(4)]
    model = tiny_model(tokenizer).to(torch.bfloat16)
    done = unlearn(model, tokenizer, forget=rows, retain=kept, epochs=2, batch_size=2, adapter={"rank": 4, "alpha": 8})
    found = evaluate(
        done.model, tokenizer, forget=rows, metrics=["probability", "collapse"], generation={"max_new_tokens": 3}
    )
    value = found.results["sets"]["forget"]["metrics"]["probability"]["value"]
    assert value == pytest.approx(done.record.after.forget, rel=0.02)
    assert found.results["model"]["weights"] is not None


def test_long_documents_are_cut_into_rows_of_every_kind(load: Load, tmp_path: Path) -> None:
    """Training uses the parts as rows with an alternative each; evaluation has one score per document and says what was cut."""
    forget, retain = ([{"text": f"{name} " * 60}, {"text": f"{name} of old. " * 40}] for name in ("Ada", "Ben"))
    long = {"max_length": 40, "chunk": True, "add_end_token": False}
    short = {"epochs": 1, "batch_size": 8, "adapter": {"rank": 2, "alpha": 2}}
    console = Console(file=io.StringIO(), width=500)
    done = unlearn(
        load(), TOKENIZER, forget=forget, retain=retain, method="dpo", encoding=long, console=console, **short
    )
    counts = done.record.encoding["forget"]
    assert counts["examples"] == counts["chunked"] == 2
    assert done.record.forget_rows == counts["rows"] > 4
    assert f"of the forget set are longer than max_length 40 and were cut into parts, {counts['rows']} rows" in (
        console.file.getvalue()  # type: ignore[attr-defined]
    )
    attacks = {"members": "forget", "nonmembers": "retain", "attacks": ["loss", "grad_norm"]}
    scores = {
        name: evaluate(
            done.model,
            TOKENIZER,
            forget=forget,
            retain=retain,
            encoding=encoding,
            metrics=["probability"],
            attacks=attacks,
        )
        for name, encoding in {"cut": long, "whole": {**long, "max_length": 512, "chunk": False}}.items()
    }
    assert len(scores["cut"].examples("forget")) == len(scores["whole"].examples("forget")) == 2
    assert any("were cut into parts" in one for one in scores["cut"].results["warnings"])
    assert scores["whole"].results["warnings"] == []
