"""An adapter that changes nothing yet is left out of a pass: the same numbers, fewer products, weights as trainable as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_forget.config import AdapterConfig
from llm_forget.data.encode import Encoded
from llm_forget.model.adapted import without_zero_adapter
from llm_forget.model.blocks import add_adapter
from llm_forget.model.measure import answer_logps
from llm_forget.testing import tiny_model, tiny_tokenizer

ROWS = [Encoded(f"r{row}", tuple((row * 7 + place * 5) % 200 + 3 for place in range(6 + row)), 3) for row in range(4)]


def adapted(dtype: torch.dtype = torch.float32) -> tuple[Any, list[str]]:
    """A model with a new adapter, and the factors that its passes multiply by."""
    torch.manual_seed(0)
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=32).to(dtype), AdapterConfig(rank=4))
    called: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    return model, called


def trainable(model: Any) -> dict[str, bool]:
    return {name: value.requires_grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_is_left_out_and_the_numbers_stay(dtype: torch.dtype) -> None:
    model, called = adapted(dtype)
    for name, value in model.named_parameters():
        if "layers.0" in name and "lora_A" in name:
            value.requires_grad_(False)
    before, with_adapter = trainable(model), answer_logps(model, ROWS, 0)
    assert called
    called.clear()
    with without_zero_adapter(model):
        without = answer_logps(model, ROWS, 0)
    assert not called
    assert all(torch.equal(*pair) for pair in zip(with_adapter, without, strict=True))
    assert trainable(model) == before
    answer_logps(model, ROWS, 0)
    assert called


def test_an_adapter_that_changes_something_stays() -> None:
    model, called = adapted()
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "lora_B" in name)[0, 0] = 1.0
    with without_zero_adapter(model):
        answer_logps(model, ROWS, 0)
    assert called


def test_a_model_without_an_adapter_is_left_alone() -> None:
    model = tiny_model(tiny_tokenizer(), hidden=32)
    before = answer_logps(model, ROWS, 0)[0]
    with without_zero_adapter(model):
        assert torch.equal(answer_logps(model, ROWS, 0)[0], before)


def test_an_error_leaves_the_weights_trainable() -> None:
    model, _ = adapted()
    before = trainable(model)
    with pytest.raises(KeyError), without_zero_adapter(model):
        raise KeyError
    assert trainable(model) == before
