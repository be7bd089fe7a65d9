"""Gradients by row against autograd, and the adapter that a search puts on a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_examples import random_rows
from peft import LoraConfig, get_peft_model

from llm_forget.config import AdapterConfig
from llm_forget.data.encode import Encoded
from llm_forget.errors import AdapterError
from llm_forget.find.attribution.adapter import lora_layers, search_adapter
from llm_forget.find.attribution.gradients import backward_by_row, gradient_similarity
from llm_forget.testing import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def direct(model: torch.nn.Module, row: Encoded) -> torch.Tensor:
    """The gradient of one row by autograd, over all trainable weights."""
    labels = torch.tensor([row.input_ids])
    labels[0, : row.prompt_length] = -100
    loss = model(input_ids=torch.tensor([row.input_ids]), labels=labels, use_cache=False).loss
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, weights)])


def with_own_adapter(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = tiny_model(TOKENIZER, hidden=16)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for layer in lora_layers(model, "B").values():
        torch.nn.init.normal_(layer.weight, std=0.2)
    return model.eval()


def test_cosines_equal_those_of_autograd_for_the_models_own_adapter() -> None:
    """Rows of different lengths share a batch, so padding must not count."""
    model, rows = with_own_adapter(), random_rows(6, len(TOKENIZER))
    with search_adapter(model) as adapted:
        found = gradient_similarity(adapted, rows[:4], rows[4:], pad_token_id=0, batch_tokens=10_000)
        gradients = torch.stack([direct(adapted, row) for row in rows])
    unit = torch.nn.functional.normalize(gradients, dim=1)
    np.testing.assert_allclose(found, (unit[4:] @ unit[:4].T).numpy(), atol=1e-5)


def test_gradients_of_a_bf16_model_are_in_fp32() -> None:
    model, rows = with_own_adapter().to(torch.bfloat16), random_rows(3, len(TOKENIZER))
    taken: dict[str, torch.Tensor] = {}
    with search_adapter(model) as adapted:
        backward_by_row(adapted, rows, 0, lambda name, one: taken.update({name: one}) or None)
    assert {one.dtype for one in taken.values()} == {torch.float32}


def test_a_layer_that_runs_twice_has_the_sum_of_both_gradients() -> None:
    model, rows = with_own_adapter(), random_rows(3, len(TOKENIZER))
    inner = model.get_base_model().model
    inner.layers[1] = inner.layers[0]
    with search_adapter(model) as adapted:
        taken: dict[str, torch.Tensor] = {}
        backward_by_row(adapted, rows, 0, lambda name, one: taken.update({name: one}) or None)
        expected = torch.stack([direct(adapted, row) for row in rows])
    norms = torch.stack([one.flatten(1).square().sum(1) for one in taken.values()]).sum(0).sqrt()
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-4, atol=1e-6)


def test_rows_whose_tokens_are_mixed_have_a_pass_each() -> None:
    """Experts see the tokens of a batch as one list; the cosines are those of separate rows."""

    class Flat(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.inner(states.flatten(0, 1)).view_as(states)

    rows = random_rows(5, len(TOKENIZER))
    model = tiny_model(TOKENIZER, hidden=16)
    with search_adapter(model) as adapted:
        expected = gradient_similarity(adapted, rows[:3], rows[3:], pad_token_id=0)
    for layer in model.model.layers:
        layer.mlp = Flat(layer.mlp)
    with search_adapter(model) as adapted:
        found = gradient_similarity(adapted, rows[:3], rows[3:], pad_token_id=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_new_adapter_changes_nothing_and_is_gone_afterwards() -> None:
    model, rows = tiny_model(TOKENIZER, hidden=16), random_rows(3, len(TOKENIZER))
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    ids = torch.tensor([rows[0].input_ids])
    logits = model(ids).logits
    with search_adapter(model, AdapterConfig(rank=4, alpha=4)) as adapted:
        torch.testing.assert_close(adapted(ids).logits, logits)
        found = gradient_similarity(adapted, rows, rows[:1], pad_token_id=0)
        with torch.no_grad():
            for layer in lora_layers(adapted).values():
                layer.weight.add_(1.0)
    assert found[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert (np.abs(found) <= 1 + 1e-6).all()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == flags


def test_the_same_seed_gives_the_same_adapter_and_the_random_state_stays() -> None:
    state = torch.get_rng_state()
    factors = []
    for seed in (0, 0, 1):
        with search_adapter(tiny_model(TOKENIZER, hidden=16), seed=seed) as adapted:
            factors.append(next(iter(lora_layers(adapted, "A").values())).weight.detach().clone())
        torch.set_rng_state(state)
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_a_row_without_an_answer_has_no_similarity() -> None:
    rows = [*random_rows(2, len(TOKENIZER)), Encoded("prompt", (3, 4, 5), 3)]
    with search_adapter(tiny_model(TOKENIZER, hidden=16)) as adapted:
        found = gradient_similarity(adapted, rows, rows[:1], pad_token_id=0)
    assert np.isnan(found[0]).tolist() == [False, False, True]


def test_an_adapter_without_lora_factors_is_refused() -> None:
    from peft import IA3Config

    model = get_peft_model(
        tiny_model(TOKENIZER, hidden=16),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    )
    with pytest.raises(AdapterError, match="no LoRA factors"), search_adapter(model):
        pass
