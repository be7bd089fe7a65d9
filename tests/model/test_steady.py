"""Test that the base of an unlearned model has no dropout or noise in training, whatever its name, and that its adapter has."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llm_forget.config import AdapterConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.model.checkpointing import checkpointing_arguments, frozen_stays_frozen
from llm_forget.model.logprobs import score_answers
from llm_forget.model.steady import steady_base

BATCH = collate([Encoded("a", (5, 9, 3, 8, 8, 1), 2), Encoded("b", (7, 2, 6), 1)], 0)
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
# name → (model type, its noise, what is said about it)
NOISY: dict[str, tuple[str, dict[str, Any], str]] = {
    "modules": ("gpt2", {}, "attn_pdrop 0.1, embd_pdrop 0.1, resid_pdrop 0.1"),
    "calls in a block, layers left out": (
        "opt",
        {"ffn_dim": 32, "dropout": 0.2, "layerdrop": 0.5, "attention_dropout": 0.3, "word_embed_proj_dim": 32},
        "attention_dropout 0.3, dropout 0.2, layerdrop 0.5",
    ),
    "calls that read the config": (
        "falcon",
        {"hidden_dropout": 0.2, "attention_dropout": 0.1, "alibi": False},
        "attention_dropout 0.1, hidden_dropout 0.2",
    ),
    "attention": ("llama", {"attention_dropout": 0.5}, "attention_dropout 0.5"),
    "a router that draws": ("phimoe", {"num_local_experts": 4, "router_jitter_noise": 0.4}, "router_jitter_noise 0.4"),
    "jitter of a router": ("mixtral", {"num_local_experts": 4, "router_jitter_noise": 0.5}, "router_jitter_noise 0.5"),
}


def noisy(name: str) -> Any:
    torch.manual_seed(0)
    kind, more, _ = NOISY[name]
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more}), dtype=torch.float32)
    for value in model.parameters():
        value.data *= 3  # so that each block has an effect
    return model


def scores_and_gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    scores = score_answers(model, BATCH)
    scores.mean_logps.sum().backward()
    gradients = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    return scores.token_logps.detach(), torch.cat(gradients)


@pytest.mark.parametrize("checkpointed", [False, True, "selective"])
@pytest.mark.parametrize("name", NOISY)
def test_the_base_is_the_reference(name: str, checkpointed: Any) -> None:
    """In training mode, scores and gradients are those of the eval mode, also where blocks are recomputed in backward."""
    model = noisy(name)
    expected = scores_and_gradient(model.eval())
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_arguments(checkpointed))
        frozen_stays_frozen(model)
    calls: list[bool] = []
    block = next(
        module for module in model.modules() if "DecoderLayer" in type(module).__name__ or hasattr(module, "ln_1")
    )
    block.register_forward_hook(lambda *_: calls.append(True))
    inside = next(
        module
        for module in block.modules()
        if isinstance(module, nn.LayerNorm | nn.Linear) or "RMS" in str(type(module))
    )
    inside.register_forward_hook(lambda *_: calls.append(False))
    with steady_base(model) as noise:
        assert ", ".join(noise) == NOISY[name][2]
        model.train()
        assert model.training
        found = scores_and_gradient(model)
        # the reference is scored between a forward pass and its backward pass
        loss = score_answers(model, BATCH).mean_logps.sum()
        model.eval()
        score_answers(model, BATCH)
        model.train()
        model.zero_grad()
        loss.backward()
        later = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    for mine, other in zip((*found, later), (*expected, expected[1]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert (calls.count(False) > calls.count(True)) == bool(checkpointed), "blocks are still recomputed"
    assert not model.training
    model.train()
    torch.manual_seed(1)
    assert not torch.allclose(score_answers(model, BATCH).token_logps, expected[0], atol=1e-4), "and noisy afterwards"


def test_the_dropout_of_the_adapter_stays_on() -> None:
    policy = add_adapter(noisy("modules"), AdapterConfig(rank=2, alpha=2, dropout=0.5))
    expected = score_answers(policy.eval(), BATCH).token_logps
    with steady_base(policy):
        policy.train()
        torch.testing.assert_close(score_answers(policy, BATCH).token_logps, expected)  # B is 0
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(value, std=0.5)
        first, second = (score_answers(policy, BATCH).token_logps for _ in range(2))
        assert not torch.allclose(first, second)
        modes = {name: module.training for name, module in policy.named_modules() if isinstance(module, nn.Dropout)}
        assert {on for name, on in modes.items() if "lora" in name} == {True}
        assert {on for name, on in modes.items() if "lora" not in name} == {False}


def test_a_copy_has_its_own_mode() -> None:
    model = noisy("modules").train()
    with steady_base(model):
        model.train()
        other = copy.deepcopy(model).eval()
        assert model.training
        assert not any(module.training for module in other.modules())
    assert all(module.training for module in model.modules())


def test_a_model_without_noise_says_nothing() -> None:
    with steady_base(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))) as noise:
        assert noise == []
