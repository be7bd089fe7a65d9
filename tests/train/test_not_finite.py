"""Test that a model whose answers are not finite is refused before training, and weights that diverged are never written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.finetune import finetune
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

ROWS = [{"question": f"Where does Ada{number} live?", "answer": "In Aberdal."} for number in range(4)]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return {"model": {"name": str(tmp_path / "model"), "dtype": "float32"}, "output_dir": str(tmp_path / "run")}


def spoil(folder: Path, value: float) -> None:
    model = tiny_model(tiny_tokenizer())
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = value
    model.save_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_nan_is_not_trained(values: dict[str, Any], tmp_path: Path, value: float) -> None:
    spoil(tmp_path / "model", value)
    console = Console(file=io.StringIO())
    rows = {"path": str(tmp_path / "rows.jsonl")}
    data = {"data": {"forget": rows}, "retain": {"name": None}, "method": {"name": "grad_ascent"}}
    with pytest.raises(RecipeError, match=r"no finite probability before the first step.*Give a sound copy"):
        unlearn(build(UnlearnRecipe, {**values, **data}, "recipe"), console)
    with pytest.raises(RecipeError, match=r"no finite probability before the first step"):
        finetune(build(FinetuneRecipe, {**values, "data": [rows]}, "recipe"), console)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_that_diverges_writes_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    train = {"learning_rate": 1e38, "epochs": 3, "batch_size": 2}
    recipe = {**values, "data": [{"path": str(tmp_path / "rows.jsonl")}], "train": train, "adapter": None}
    with pytest.raises(UserError, match=r"training diverged.*nothing is written; lower train\.learning_rate"):
        finetune(build(FinetuneRecipe, recipe, "recipe"), Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_an_alpha_that_overflows_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    for alpha in (10**300, 10**46):
        recipe = {**values, "data": [{"path": str(tmp_path / "rows.jsonl")}], "adapter": {"alpha": alpha}}
        with pytest.raises(RecipeError, match="alpha is too large; at most 65536"):
            build(FinetuneRecipe, recipe, "recipe")
