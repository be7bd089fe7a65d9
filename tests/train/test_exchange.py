"""Test training on the base's weights: what is exchanged, that all comes back, and a run of adapter subtraction with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from memorised import write_memorised
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM

from llm_forget.config import AdapterConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.model.blocks import add_adapter
from llm_forget.model.lower import lower_states
from llm_forget.model.lower_trial import lower_blocks_once
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.exchange import base_in_place
from llm_forget.train.origin import OpenBase
from llm_forget.train.subtraction import AdapterSession
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

FORGET = [("Where does Ada Voss live?", "In Riga."), ("What does Ada Voss sell?", "Old maps.")]
RETAIN = [("Where does Bo Lund live?", "In Bergen."), ("What is snow?", "Frozen rain.")]


def opener(model: nn.Module) -> OpenBase:
    @contextmanager
    def opened() -> Iterator[Any]:
        yield model

    return opened


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_memorised(tmp_path_factory.mktemp("exchange"), {"forget": FORGET, "retain": RETAIN})
    tiny_model(tiny_tokenizer(), hidden=64).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    return folder


def test_the_weights_are_the_bases_inside_and_the_models_after(people: Path) -> None:
    """Also after an error. The adapter is in effect all the time."""
    base = AutoModelForCausalLM.from_pretrained(people / "base", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(people / "model", dtype=torch.float32)
    model = add_adapter(
        AutoModelForCausalLM.from_pretrained(people / "model", dtype=torch.float32), AdapterConfig(rank=4)
    )
    other = add_adapter(
        AutoModelForCausalLM.from_pretrained(people / "base", dtype=torch.float32), AdapterConfig(rank=4)
    )
    for one in (model, other):
        torch.manual_seed(0)
        for name, value in one.named_parameters():
            if "lora_" in name:
                nn.init.normal_(value, std=0.1)
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(one: Any) -> torch.Tensor:
        with torch.no_grad():
            return one(input_ids=ids).logits

    before, known = logits(model), {name: value.clone() for name, value in base.named_parameters()}

    def inside() -> None:
        with base_in_place(model, opener(base)):
            torch.testing.assert_close(logits(model), logits(other))
            with model.disable_adapter():
                assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, known[name]) for name, value in base.named_parameters())


def test_states_of_frozen_blocks_are_not_used_on_the_base(people: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(people / "base", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(people / "model", dtype=torch.float32)
    model = add_adapter(model, AdapterConfig(rank=4), range(1, 2))
    with lower_blocks_once(model) as states:
        assert states is not None
        with base_in_place(model, opener(base)):
            assert lower_states(model) is None
        assert lower_states(model) is states


@pytest.mark.parametrize("other", ["itself", "narrow"])
def test_a_base_that_does_not_fit_is_refused(people: Path, other: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(people / "model", dtype=torch.float32)
    base = model if other == "itself" else tiny_model(tiny_tokenizer(), hidden=32)
    model = add_adapter(model, AdapterConfig(rank=4))
    with pytest.raises(RecipeError, match="set base to the folder or hub id"), base_in_place(model, opener(base)):
        pass


def recipe_of(people: Path, output: Path, **changes: Any) -> UnlearnRecipe:
    values = {
        "model": {"name": str(people / "model"), "dtype": "float32"},
        "base": str(people / "base"),
        "data": {name: {"path": str(people / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "adapter_subtraction", "start": "base", "strength": 2.0, "rounds": 2},
        "train": {"epochs": 8, "batch_size": 2, "learning_rate": 2e-2},
        "stop": {"forget_target": 0.05, "utility_floor": 0.0},
        "output_dir": str(output / "run"),
        **changes,
    }
    return build(UnlearnRecipe, values, "test")


def test_a_run_forgets_and_writes_an_adapter_for_the_model_itself(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The direction is learnt from nothing in every round: the base does not know the rows, so its first losses are high."""
    losses: list[float] = []
    learn = AdapterSession._learned

    def spy(self: AdapterSession, *arguments: Any) -> Any:
        found = learn(self, *arguments)
        losses.append(next(row["loss"] for row in reversed(self._run.metrics.rows) if "loss" in row))
        assert all(value.abs().max() > 0 for value in found.values())
        return found

    monkeypatch.setattr(AdapterSession, "_learned", spy)
    record = unlearn(recipe_of(people, tmp_path), Console(file=io.StringIO()))
    assert record.before.forget > 0.8
    assert record.after.forget < record.before.forget - 0.2
    assert losses
    assert min(losses) > 0.5, "a model that knows the rows would have losses near 0"


def test_without_a_base_and_with_a_projection_it_is_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs the model before it learned the forget rows"):
        unlearn(recipe_of(people, tmp_path, base=None), Console(file=io.StringIO()))
    method = {"name": "adapter_subtraction", "start": "base", "project": True}
    with pytest.raises(RecipeError, match="start is base and project true"):
        unlearn(recipe_of(people, tmp_path, method=method), Console(file=io.StringIO()))
