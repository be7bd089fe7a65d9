"""Test which layers of an architecture get an adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import tiny

from llm_forget.config import AdapterConfig
from llm_forget.errors import RecipeError
from llm_forget.model.blocks import add_adapter, train_only_blocks
from llm_forget.model.targets import adapter_targets, blocks_by_name
from llm_forget.testing import tiny_tokenizer

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def leaves(names: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("kind", "expected", "left_out"),
    [
        ("llama", ATTENTION | MLP, None),
        ("mixtral", ATTENTION, "routers and experts"),
        ("qwen3_moe", ATTENTION, "routers and experts"),
        ("qwen2_moe", ATTENTION | MLP | {"shared_expert_gate"}, "routers and fused experts"),
        # PEFT would turn the gate_proj of its dense block and its shared expert into LoRA on all experts
        ("deepseek_v3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}, "routers and experts"),
        ("hunyuan_v1_moe", ATTENTION, "routers and experts"),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}, None),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, None),
        ("falcon", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}, None),
        # the kernels of state-space mixers read the other weights as tensors
        ("mamba", {"in_proj"}, "x_proj, dt_proj, out_proj"),
        ("bamba", ATTENTION | MLP | {"in_proj"}, "out_proj"),
    ],
)
def test_the_default_adapts_linear_layers_only(kind: str, expected: set[str], left_out: str | None) -> None:
    said: list[str] = []
    model = add_adapter(tiny(kind, tiny_tokenizer()), AdapterConfig(rank=2, alpha=2), say=said.append)
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert leaves(adapted) == expected
    assert not model.peft_config["default"].target_parameters
    assert all(value.dim() == 2 for value in model.parameters() if value.requires_grad)
    assert len(said) == (left_out is not None)
    assert left_out is None or (left_out in said[0] and all(name in said[0] for name in expected))


def test_only_the_text_decoder_of_a_multimodal_model_is_adapted() -> None:
    model = tiny("gemma3", tiny_tokenizer())
    assert any("vision_tower" in name and name.endswith(".q_proj") for name, _ in model.named_modules())
    for wanted in ("all-linear", ["q_proj"], r".*\.q_proj"):
        for blocks in (None, range(1, 2)):
            names = adapter_targets(model, wanted, blocks).names
            assert names
            assert all(".language_model.layers." in name for name in names)
    train_only_blocks(model, [1])
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all(".language_model.layers.1." in name for name in trained)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("opt", "model.decoder.layers"),
        ("mpt", "transformer.blocks"),
        ("xlstm", "backbone.blocks"),
        ("rwkv", "rwkv.blocks"),
    ],
)
def test_blocks_are_found_by_structure(kind: str, prefix: str) -> None:
    assert blocks_by_name(tiny(kind, tiny_tokenizer())) == {f"{prefix}.0": 0, f"{prefix}.1": 1}


@pytest.mark.parametrize(
    ("kind", "wanted", "reason"),
    [
        ("llama", ["q_proj", "embed_tokens"], r"names model\.embed_tokens, an embedding"),
        ("llama", r".*embed_tokens|.*q_proj", "an embedding"),
        ("gemma", ["q_proj", "lm_head"], "lm_head, which this model ties to its embeddings"),
        ("mamba", ["in_proj", "conv1d"], "a convolution"),
        ("mamba", ["out_proj"], "PEFT cannot adapt"),
        (
            "mixtral",
            ["gate_up_proj"],
            "linear layers of this mixtral model are k_proj, lm_head, o_proj, q_proj, v_proj",
        ),
        ("deepseek_v3", ["gate_proj", "up_proj"], "takes for fused experts"),
    ],
)
def test_targets_that_would_not_be_plain_lora_are_refused_before_training(kind: str, wanted: Any, reason: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.target_modules: ") as refused:
        add_adapter(tiny(kind, tiny_tokenizer()), AdapterConfig(rank=2, alpha=2, target_modules=wanted))
    assert refused.match(reason)


def test_an_adapter_beyond_plain_lora_is_refused_right_after_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import llm_forget.model.targets

    monkeypatch.setattr(llm_forget.model.targets, "_redirected_by_peft", lambda *_: set())
    config = AdapterConfig(rank=2, alpha=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    with pytest.raises(RecipeError, match="target_parameters"):
        add_adapter(tiny("deepseek_v3", tiny_tokenizer()), config)


def test_every_adapted_layer_learns() -> None:
    model = add_adapter(tiny("mixtral", tiny_tokenizer()), AdapterConfig(rank=2, alpha=2))
    ids = torch.arange(12)[None]
    model(input_ids=ids).logits.logsumexp(-1).sum().backward()
    assert all(bool(value.grad.any()) for name, value in model.named_parameters() if "lora_B" in name)
