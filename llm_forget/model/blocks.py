"""Decoder blocks: select the trained ones, add a LoRA adapter, and compile."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from llm_forget.adapters.lora_config import config_problems, tensor_problems
from llm_forget.config import AdapterConfig
from llm_forget.errors import RecipeError
from llm_forget.model.targets import adapter_targets, blocks_by_name, depth_of, in_blocks


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
    chosen = set(in_blocks([name for name, _ in model.named_parameters()], blocks_by_name(model), blocks))
    for name, value in model.named_parameters():
        value.requires_grad_(name in chosen)


def add_adapter(
    model: nn.Module,
    config: AdapterConfig,
    blocks: Collection[int] | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Any:
    """Put a new LoRA adapter on the model, with fp32 weights over a frozen base of any dtype.

    Args:
        model: the base.
        config: the recipe's adapter section.
        blocks: the blocks that get an adapter; None for those that ``config.top_share`` selects.
        say: called with a sentence about layers that are not adapted, if there is one.

    Raises:
        RecipeError: ``adapter.target_modules`` selects no layer, or the adapter would not be plain LoRA on linear layers.
    """
    from peft import LoraConfig, get_peft_model

    if blocks is None and config.top_share < 1:
        blocks = top_blocks(config, depth_of(model))
    targets = adapter_targets(model, config.target_modules, blocks)
    try:
        # PEFT's prepare_model_for_kbit_training is not used: it casts embeddings and head to fp32, which takes 2 GB more for
        # an 8B model and has no benefit, because they are frozen and run under autocast.
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets.names,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise RecipeError(f"adapter.target_modules: PEFT cannot adapt {config.target_modules!r}: {error}") from error
    _refuse_other_adapters(adapted)
    if targets.left_out is not None:
        say(targets.left_out)
    if next(model.parameters()).dtype == torch.bfloat16:
        # a bf16 base is trained under autocast, which casts inputs to bf16 anyway
        cast_adapter_inputs(adapted, False)
    return adapted


def cast_adapter_inputs(model: Any, wanted: bool) -> None:
    """Choose whether PEFT casts the inputs of an adapter to its dtype, which a bf16 base needs outside autocast."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = wanted


def _refuse_other_adapters(adapted: Any) -> None:
    """Raise before training what the run folder's reader would raise after it: PEFT may change the config that it is given."""
    names = [name.replace(".default", "") for name, value in adapted.named_parameters() if value.requires_grad]
    problems = [*config_problems(adapted.peft_config["default"].to_dict()), *tensor_problems(names)]
    if problems:
        found = "; ".join(map(str, problems))
        raise RecipeError(f"adapter.target_modules: the adapter would not be plain LoRA on linear layers: {found}")


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
