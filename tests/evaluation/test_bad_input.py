"""Test that invalid input gives a clear message or a counted NaN, never a silent number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_examples import tiny_model, write_jsonl, write_sets
from peft import LoraConfig, get_peft_model

from llm_forget.config import ModelConfig
from llm_forget.errors import UserError
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import ControlsConfig, EvalRecipe
from llm_forget.evaluation.results import read_results
from llm_forget.testing import tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    write_sets(tmp_path)
    sets = {"forget": {"data": {"path": "forget.jsonl"}}, "retain": {"data": {"path": "retain.jsonl"}}}
    suite = {"sets": sets, "generation": {"max_new_tokens": 2}}
    Path("small.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


def recipe(**changes: object) -> EvalRecipe:
    values = {"model": ModelConfig("./model", dtype="float32"), "suite": "small.yaml", "output_dir": "run"}
    return EvalRecipe(**{**values, **changes})  # type: ignore[arg-type]


def test_an_empty_suite(folder: Path) -> None:
    Path("small.yaml").write_text("sets: {}")
    with pytest.raises(UserError, match="sets is empty; name at least one, for example forget"):
        evaluate(recipe())
    Path("small.yaml").write_text("sets: {forget: {data: {path: none.jsonl}}}")
    Path("none.jsonl").write_text("")
    with pytest.raises(UserError, match=r"none\.jsonl: holds no rows"):
        evaluate(recipe())


def test_a_missing_oracle(folder: Path) -> None:
    with pytest.raises(UserError, match=r"oracle: gone\.json cannot be read.*run this suite on the oracle first"):
        evaluate(recipe(controls=ControlsConfig(oracle="gone.json")))
    with pytest.raises(UserError, match=r"sham: gone\.json cannot be read"):
        evaluate(recipe(controls=ControlsConfig(sham="gone.json")))


def test_an_adapter_for_another_base(folder: Path) -> None:
    wide = tiny_model()
    wide = get_peft_model(wide, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in wide.named_parameters():
        if "lora_B" in name:
            weight.data = torch.zeros(64, 2)
    wide.save_pretrained("adapter")
    with pytest.raises(UserError, match=r"adapter does not fit .*model: it changes .*q_proj with shape \(64, 32\)"):
        evaluate(recipe(model=ModelConfig("./model", adapter="adapter", dtype="float32")))


@pytest.mark.parametrize("answer", ["", "   "])
def test_a_row_without_an_answer_token(folder: Path, answer: str) -> None:
    rows = [json.loads(line) for line in Path("forget.jsonl").read_text().splitlines()]
    rows[3]["answer"] = answer
    write_jsonl(folder / "forget.jsonl", rows)
    with pytest.raises(UserError, match=r"forget\.jsonl:4: answer is empty or only white space"):
        evaluate(recipe())


def test_nan_scores_are_counted_and_cached(folder: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained("model")
    off = {f"sets.{name}.generate": False for name in ("forget", "retain")}
    for _ in range(2):
        evaluate(recipe(overrides=off))
        results = read_results(Path("run/eval/small.json"))
        for name in ("forget", "retain"):
            for label, one in results["sets"][name]["metrics"].items():
                assert (one["value"], one["n"], one["n_nan"]) == (None, 0, 5), (name, label)
    assert any(Path("run/eval/cache").rglob("*.safetensors"))


def test_location_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_FORGET_CACHE", str(folder / "common"))
    evaluate(recipe())
    assert any((folder / "common" / "evaluation").rglob("*.safetensors"))
    assert not Path("run/eval/cache").exists()
    monkeypatch.delenv("LLM_FORGET_CACHE")
    evaluate(recipe(cache=None, output_dir="off"))
    assert sorted(entry.suffix for entry in Path("off/eval").iterdir()) == [".json", ".parquet"]
    evaluate(recipe(cache="mine"))
    assert any(Path("mine").rglob("*.safetensors"))
