"""Test the adapter between two rounds of subtraction, in a run on the tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from llm_forget.config import UnlearnRecipe
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.subtraction import AdapterSession
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


@pytest.fixture
def recipe(tmp_path: Path) -> UnlearnRecipe:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, words in (("forget", "the red one"), ("retain", "a blue one")):
        rows = [{"question": f"{name} {row}?", "answer": words} for row in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "model": {"name": str(tmp_path / "model"), "dtype": "float32"},
        "data": {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "adapter_subtraction", "strength": 2.0, "rounds": 2, "project": True},
        "train": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
        "stop": {"forget_target": 1e-9, "utility_floor": 0.0},
        "output_dir": str(tmp_path / "run"),
    }
    return build(UnlearnRecipe, values, "test")


def test_the_component_shared_with_the_retain_rows_is_not_subtracted(
    recipe: UnlearnRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each row w of ΔW, the part of w along the unit vector between w and v is removed; the model is set to the result."""
    learned: list[dict[str, Tensor]] = []
    rounds: list[dict[str, tuple[Tensor, ...]]] = []
    learn, project = AdapterSession._learned, AdapterSession.leave_shared

    def spy_learn(self: AdapterSession, *arguments: Any) -> dict[str, Tensor]:
        learned.append(learn(self, *arguments))
        return dict(learned[-1])

    def spy_project(self: AdapterSession, steps: int) -> None:
        start = {name: value.clone() for name, value in self._before.items()}
        project(self, steps)
        weights = {name: value.detach() for name, value in self._run.model.named_parameters()}
        rounds.append(
            {
                name: (weights[name.replace("lora_B", "lora_A")].clone(), change, start[name])
                for name, change in self._change.items()
            }
        )
        self.set_strength(3.0)
        for name, change in self._change.items():
            torch.testing.assert_close(weights[name], start[name] - 3.0 * change)

    monkeypatch.setattr(AdapterSession, "_learned", spy_learn)
    monkeypatch.setattr(AdapterSession, "leave_shared", spy_project)
    record = unlearn(recipe, Console(file=io.StringIO()))
    assert record.details["rounds"] == len(rounds) == 2
    assert len(learned) == 4, "each round learns towards the forget rows and towards the retain rows"
    for (towards, kept), found in zip(zip(learned[::2], learned[1::2], strict=True), rounds, strict=True):
        for name, (a, change, _) in found.items():
            w, v = towards[name] @ a, kept[name] @ a
            assert w.norm() > 0 < v.norm()
            shared = normalize(normalize(w, dim=-1) + normalize(v, dim=-1), dim=-1)
            expected = w - (w * shared).sum(-1, keepdim=True) * shared
            torch.testing.assert_close(change @ a, expected, rtol=1e-3, atol=1e-6)
            assert not torch.allclose(change, towards[name], rtol=1e-3, atol=1e-6)
