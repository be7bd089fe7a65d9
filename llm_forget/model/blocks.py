"""Decoder blocks: select the trained ones, add a LoRA adapter, and compile."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from llm_forget.config import AdapterConfig
from llm_forget.errors import RecipeError


def block_of(name: str) -> int | None:
    """The number of the block that a module or parameter belongs to, or None if it is outside the blocks.

    Args:
        name: for example ``model.layers.7.mlp.up_proj``, which is in block 7.
    """
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.", name)
    return int(found[1]) if found else None


def top_blocks(config: AdapterConfig, depth: int) -> range | None:
    """The blocks that ``adapter.top_share`` selects; always at least one.

    Args:
        config: the recipe's adapter section.
        depth: the number of blocks of the model.

    Returns:
        Block numbers, counted from 0, or None if all blocks are selected.
    """
    count = max(1, round(config.top_share * depth))
    return None if count == depth else range(depth - count, depth)


def train_only_blocks(model: nn.Module, blocks: Collection[int]) -> None:
    """Freeze every weight outside the given blocks, for full fine-tuning."""
    for name, value in model.named_parameters():
        value.requires_grad_(block_of(name) in blocks)


def _names_in_blocks(model: nn.Module, targets: str | list[str], blocks: Collection[int]) -> list[str]:
    """The modules in the given blocks that match ``adapter.target_modules``.

    Matches as PEFT does: "all-linear", a regular expression for the full name, or a list of name suffixes.
    """
    from transformers.pytorch_utils import Conv1D

    def matches(name: str, module: nn.Module) -> bool:
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return isinstance(module, nn.Linear | Conv1D)
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == ending or name.endswith(f".{ending}") for ending in targets)

    return [name for name, module in model.named_modules() if block_of(name) in blocks and matches(name, module)]


def add_adapter(model: nn.Module, config: AdapterConfig, blocks: Collection[int] | None = None) -> Any:
    """Put a new LoRA adapter on the model, with fp32 weights over a frozen base of any dtype.

    Args:
        model: the base.
        config: the recipe's adapter section.
        blocks: the blocks that get an adapter; None for those that ``config.top_share`` selects.

    Raises:
        RecipeError: ``adapter.target_modules`` matches no layer.
    """
    from peft import LoraConfig, get_peft_model

    if blocks is None:
        inner: Any = model
        blocks = top_blocks(config, int(inner.config.get_text_config().num_hidden_layers))
    targets = config.target_modules
    try:
        # PEFT's prepare_model_for_kbit_training is not used: it casts embeddings and head to fp32, which takes 2 GB more for
        # an 8B model and has no benefit, because they are frozen and run under autocast.
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if blocks is None else _names_in_blocks(model, targets, blocks),
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
    except (ValueError, re.error) as error:
        raise RecipeError(f"adapter.target_modules: {targets!r} matches no layer of the model: {error}") from error
    if next(model.parameters()).dtype == torch.bfloat16:
        # A bf16 base runs under autocast, which casts inputs to bf16 anyway. Skip PEFT's cast to fp32.
        for module in adapted.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return adapted


def compile_blocks(model: Any) -> None:
    """Compile each decoder block in place with ``torch.compile``, for varying batch widths.

    The blocks are identical, so one compilation serves all. Embeddings and head are not compiled, because the head reads
    different positions in every batch.

    Raises:
        RecipeError: the model has no ``layers`` list in its decoder.
    """
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise RecipeError(f"train.compile: {type(decoder).__name__} has no list of layers to compile; set it to false")
    for layer in layers:
        layer.compile(dynamic=True)
