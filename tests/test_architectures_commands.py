"""The matrix of architectures: fine-tune, unlearn, evaluate, merge and check a tiny model of each structure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import TYPES, tiny
from rich.console import Console

from llm_forget.adapters.doctor import diagnose
from llm_forget.adapters.merge import merge
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.testing import tiny_tokenizer
from llm_forget.train.finetune import finetune
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

pytestmark = pytest.mark.slow
# Types whose layers are those of another type; test_architectures.py compares their scores and gradients.
_LIKE_OTHERS = (
    "apertus arcee bitnet codegen cohere2 deepseek_v2 diffllama dots1 ernie4_5 exaone4 falcon_h1 falcon_mamba flex_olmo "
    "gemma3_text glm glm4_moe gpt_bigcode granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe ministral nemotron_h olmo "
    "olmo3 persimmon qwen2 seed_oss smollm3 starcoder2 vaultgemma xglm xlstm"
)
KINDS = [kind for kind in TYPES if kind not in _LIKE_OTHERS.split()]
TOKENS = [(7 * place + 3) % 250 for place in range(40)]


def test_at_least_forty_structures_are_covered() -> None:
    assert len(KINDS) >= 40


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_runs(kind: str, tmp_path: Path) -> None:
    """Fine-tune, unlearn, evaluate, merge, check: the merged model answers as PEFT does."""
    tokenizer = tiny_tokenizer()
    # with larger weights, each step of PhiMoE moves tokens to other experts, so that its loss jumps
    tiny(kind, tokenizer, spread=1.0 if kind == "phimoe" else 3.0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name, count in (("forget", 2), ("retain", 4)):
        asked = [{"question": f"Where is {name} {place}?", "answer": f"In {place * 'x'}ia."} for place in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    quiet = Console(quiet=True)
    common = {"adapter": {"rank": 2, "alpha": 2}, "train": {"epochs": 1, "batch_size": 2, "learning_rate": 0.01}}
    data = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("forget", "retain")}
    base = {"name": str(tmp_path / "base"), "dtype": "float32"}

    values = {**common, "model": base, "data": list(data.values()), "output_dir": str(tmp_path / "target")}
    finetune(build(FinetuneRecipe, values, "test"), quiet)
    target = tmp_path / "target" / "model"

    values = {**common, "model": {**base, "name": str(target)}, "data": data, "method": {"name": "npo"}}
    values |= {"output_dir": str(tmp_path / "run"), "stop": {"forget_target": None, "utility_floor": 0.0}}
    # several small steps: one large step of a random mixture of experts may land anywhere
    values |= {"train": {**common["train"], "epochs": 8, "learning_rate": 0.003}}
    recipe = build(UnlearnRecipe, values, "test")
    record = unlearn(recipe, quiet)
    assert record.steps == 8
    assert record.after.forget < record.before.forget

    adapter = tmp_path / "run" / "adapter"
    settings = {"perplexity": None, "capability": None, "metrics": ["probability"], "generation": {"max_new_tokens": 4}}
    sets = {name: {"data": one, "generate": name == "forget"} for name, one in data.items()}
    values = {
        "model": {**values["model"], "adapter": str(adapter)},
        "suite": "custom",
        "output_dir": str(tmp_path / "run"),
    }
    measured = build(EvalRecipe, {**values, "overrides": {**settings, "sets": sets}}, "test")
    results = evaluate(measured, console=quiet)
    assert results["sets"]["forget"]["metrics"]["probability"]["value"] == pytest.approx(record.after.forget, rel=1e-3)

    merge(target, adapter, tmp_path / "merged")
    found = diagnose(target, adapter, prompts=[TOKENS])
    assert found.parity is not None, found.report()
    assert found.parity.ok, found.report()
    assert found.parity.effect > found.parity.allowed, found.report()
    changes = {"model": replace(recipe.model, name=str(tmp_path / "merged")), "output_dir": str(tmp_path / "again")}
    merged = evaluate(replace(measured, **changes), console=quiet)
    assert merged["sets"]["forget"]["metrics"]["probability"]["value"] == pytest.approx(record.after.forget, rel=1e-3)
