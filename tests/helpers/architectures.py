"""Tiny models of many architectures of transformers: two blocks, 64 wide, four experts, random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# Sizes by the name that a config gives them; each config takes those that it knows.
_SIZES: Mapping[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4},
    **{"num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1},
    **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_shared_experts": 1},
    **{"moe_shared_expert_intermediate_size": 32, "num_shared_experts": 1, "expert_ffn_hidden_size": 32},
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    **{"ssm_state_size": 8, "state_size": 8, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_heads": 4},
    **{"mamba_d_head": 32, "mamba_num_heads": 4, "mamba_head_dim": 32, "mamba_dt_rank": 4},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"sliding_window": 256, "query_pre_attn_scalar": 16, "rotary_dim": 8, "word_embed_proj_dim": 64, "ffn_dim": 128},
}
_MLA = {"head_dim": 8, "num_key_value_heads": 4}
_GEMMA3 = {
    "text_config": {"model_type": "gemma3_text"},
    "vision_config": {
        **{"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    },
    "mm_tokens_per_image": 4,
}
# Model type → settings beyond the common sizes. Of hybrids, one block is of each kind.
TYPES: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1, "mamba_chunk_size": 16},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {},
    "cohere2": {},
    "ctrl": {"dff": 128},
    "deepseek_v2": _MLA,
    "deepseek_v3": {**_MLA, "first_k_dense_replace": 1},
    "diffllama": {},
    "doge": {},
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "falcon_mamba": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": _GEMMA3,
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "jetmoe": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {"intermediate_size_mlp": 128},
    "mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
    "minimax": {},
    "ministral": {},
    "mistral": {},
    "mixtral": {},
    "mpt": {},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe"], "n_groups": 1},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 64},
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "xglm": {},
    "xlstm": {},
}


def tiny_config(kind: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """The config of a tiny model over a tokenizer's vocabulary.

    Args:
        kind: the model type, a key of ``TYPES``.
        tokenizer: gives vocabulary and end token.
        changes: settings that replace those of the type.
    """
    return CONFIG_MAPPING[kind](**_settings(kind, tokenizer, {**TYPES[kind], **changes}))


def _settings(kind: str, tokenizer: PreTrainedTokenizerFast, own: Mapping[str, Any]) -> dict[str, Any]:
    cls = CONFIG_MAPPING[kind]
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    known = {item.name for item in fields(cls)} | set(cls.attribute_map)
    wanted = {name: value for name, value in {**_SIZES, **ends, "vocab_size": len(tokenizer)}.items() if name in known}
    # a setting with two names is given once
    wanted = {name: value for name, value in wanted.items() if cls.attribute_map.get(name) not in {*wanted, *own}}
    settings = {**wanted, **own}
    if "text_config" in own:
        settings["text_config"] = _settings(own["text_config"]["model_type"], tokenizer, own["text_config"])
    return settings


def tiny(kind: str, tokenizer: PreTrainedTokenizerFast, *, spread: float = 1.0, **changes: Any) -> PreTrainedModel:
    """A tiny model in fp32 with the same random weights every time.

    Args:
        kind: the model type, a key of ``TYPES``.
        tokenizer: gives vocabulary and end token.
        spread: factor on all matrices; random weights are small, so that much of a block's work would go unseen. With any other
            than 1, vectors of zeros get random values too.
        changes: settings that replace those of the type.
    """
    torch.manual_seed(0)
    config = tiny_config(kind, tokenizer, **changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(spread)
            elif spread != 1 and not value.any():
                value.normal_(std=0.1)  # biases, and Doge's mask, begin as zeros
    return model.eval()
