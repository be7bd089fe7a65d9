"""Test an unlearning run of a model that has dropout of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_forget.config import UnlearnRecipe
from llm_forget.testing import tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


@pytest.mark.parametrize("adapter", [True, False])
def test_the_first_loss_of_npo_is_that_of_the_reference(
    adapter: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first update policy and reference are equal, so the loss is (2/β) · ln 2, for any model."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256)
    assert config.attn_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for part in ("forget", "retain"):
        rows = [{"question": f"{part} {row}?", "answer": f"the {part} one " * (1 + row % 3)} for row in range(4)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": {"name": str(tmp_path / "model"), "dtype": "float32"},
        "data": {part: {"path": str(tmp_path / f"{part}.jsonl")} for part in ("forget", "retain")},
        "method": {"name": "npo", "beta": 0.1},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4},
        "stop": {"forget_target": None, "utility_floor": 0.0, "rows": 2},
        "output_dir": str(tmp_path / "run"),
        **({} if adapter else {"adapter": None}),
    }
    unlearn(build(UnlearnRecipe, values, "test"))
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(step["forget_loss"] for step in steps if "forget_loss" in step)
    assert first == pytest.approx(2 / 0.1 * math.log(2), abs=1e-4)
    off = ["attn_pdrop 0.1", "embd_pdrop 0.1", "resid_pdrop 0.1"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["noise_off"] == off
    assert (
        capsys.readouterr().err.count(f"dropout and noise are off, because the reference has none: {', '.join(off)}")
        == 1
    )
    if not adapter:
        assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["attn_pdrop"] == 0.1
