"""Predict the memory of a run before it starts: one step of the real model on tensors without content."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.memory.step import Batch, PlannedStep
from llm_forget.model.blocks import add_adapter, top_blocks, train_only_blocks
from llm_forget.model.checkpointing import checkpointing_arguments
from llm_forget.model.head import output_head
from llm_forget.model.load import attention_for, frozen_dtype, locate_model
from llm_forget.train.build import build_method, build_retain, chosen_layer, trained_blocks
from llm_forget.train.objective import Objective
from llm_forget.train.step_rows import StepRows

GB = 10**9
# What a card holds besides tensors: CUDA's context, cuBLAS workspaces, and what the allocator cannot hand out again.
CARD_FIXED, CARD_SHARE = 1.2e9, 0.05
# Bytes a weight of a quantised linear layer: nf4 keeps an fp32 scale for every 64 weights, int8 one for every row.
_QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
_SHALLOW = (2, 4)  # layers of the models that are tried instead of a deep one
_STATE_BYTES = (("8bit", 2.1), ("4bit", 1.1), ("adafactor", 0.1), ("sgd", 0.0), ("lion", 4.0), ("adam", 8.0))


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a training step, by what they are for.

    Attributes:
        weights: the model as it is held, frozen or trained.
        adapter: the adapter's weights.
        optimizer: its state.
        gradients: of what is trained.
        reference: a second copy of the weights; 0 if disabling the adapter or stored log-probs make it unnecessary.
        activations: everything else that is alive at the peak, except logits.
        logits: tensors whose last dimension is the vocabulary.
        best_state: a copy of the trained weights for rolling back, in the CPU's memory.
        rows: of a micro-batch, forget and retain together.
        tokens: of a row.
        on_card: whether it is planned for a GPU.
    """

    weights: float
    adapter: float
    optimizer: float
    gradients: float
    reference: float
    activations: float
    logits: float
    best_state: float
    rows: int
    tokens: int
    on_card: bool

    @property
    def total(self) -> float:
        """Bytes on the device."""
        parts = [self.weights, self.adapter, self.optimizer, self.gradients, self.reference]
        parts += [self.activations, self.logits]
        return sum(parts) if self.on_card else sum(parts) + self.best_state

    @property
    def needed(self) -> float:
        """Bytes that the device must have: on a card, with what it holds besides tensors."""
        return self.total * (1 + CARD_SHARE) + CARD_FIXED if self.on_card else self.total


def plan(recipe: UnlearnRecipe, *, on_card: bool, tokens: int | None = None, model_config: Any = None) -> Plan:
    """Plan one run; needs the model's config and none of its weights.

    Args:
        recipe: the checked recipe.
        on_card: for a GPU that multiplies in bf16; otherwise for this machine's CPU.
        tokens: of the longest row; by default ``encoding.max_length``, which no row exceeds.
        model_config: a transformers config; by default that of the recipe's model.

    Raises:
        RecipeError: the recipe cannot work, or the model's config cannot be read.
    """
    method = build_method(recipe)
    retain = build_retain(recipe.retain, method)
    rows = Objective(method, retain).rows
    batch = _batch(rows, recipe.train.batch_size, tokens or recipe.encoding.max_length)

    config = model_config or _config_of(recipe)
    model, _ = _on_meta(recipe, config, on_card)
    blocks = top_blocks(recipe.adapter, int(config.num_hidden_layers)) if recipe.adapter is not None else None
    chosen = trained_blocks(method, model, chosen_layer(method, retain))
    if chosen is not None:
        blocks = range(min(chosen), max(chosen) + 1)
        model, _ = _on_meta(recipe, config, on_card, blocks)
    sizes = _weights(model, recipe)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)

    def peak_of(config: Any, blocks: range | None) -> Counter[str]:
        model, dtype = _on_meta(recipe, config, on_card, blocks)
        return PlannedStep(model, batch, on_card=on_card).peak(
            autocast=dtype == torch.bfloat16,
            checkpointing=checkpointing_arguments(recipe.train.gradient_checkpointing),
            accumulate=recipe.train.gradient_accumulation > 1,
        )

    peak = _over_layers(config, blocks, peak_of)
    adapter = 4.0 * trained if recipe.adapter is not None else 0.0
    weights = sizes - adapter
    workspace = _dequantised(model) if recipe.model.quantization else 0.0
    checks = 0 if method.towards else 1
    return Plan(
        weights=weights,
        adapter=adapter,
        optimizer=_optimizer_bytes(recipe.train.optimizer) * trained,
        gradients=4.0 * trained,
        reference=weights if batch.reference and recipe.adapter is None else 0.0,
        activations=max(peak["all"] - peak["logits"] - 4.0 * trained, 0.0) + workspace,
        logits=float(peak["logits"]),
        best_state=4.0 * trained * checks,
        rows=batch.rows,
        tokens=batch.tokens,
        on_card=on_card,
    )


def largest_batch(recipe: UnlearnRecipe, memory: float, **how: Any) -> int:
    """The largest ``train.batch_size`` whose plan fits into so many bytes; 0 where not even 1 does."""

    def needed(size: int) -> float:
        return plan(replace(recipe, train=replace(recipe.train, batch_size=size)), **how).needed

    known = {1: needed(1)}
    if known[1] > memory:
        return 0
    guess, top = 2, None
    while top is None or top - max(size for size, bytes_ in known.items() if bytes_ <= memory) > 1:
        known[guess] = needed(guess)
        low = max(size for size, bytes_ in known.items() if bytes_ <= memory)
        top = min((size for size, bytes_ in known.items() if bytes_ > memory), default=None)
        # a row adds about the same each time, so a straight line through two plans lands near the answer
        near, far = sorted(known, key=lambda size: abs(known[size] - memory))[:2]
        slope = (known[near] - known[far]) / (near - far)
        line = near + math.floor((memory - known[near]) / slope) if slope > 0 else low * 2
        guess = max(low + 1, min(line, low * 16 if top is None else top - 1))
    return low


def parse_memory(text: str) -> float:
    """``40GB``, ``24 GiB``, ``512MB`` → bytes.

    Raises:
        RecipeError: it is something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT])(i?)[bB]?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise RecipeError(f"memory {text!r} is not a size; write for example 40GB or 24GiB")
    unit = 1024.0 if found[3] else 1000.0
    power = "kmgt".index(found[2].lower()) + 1
    return float(found[1]) * math.pow(unit, power)


def _batch(rows: StepRows, pairs: int, tokens: int) -> Batch:
    """A micro-batch of this many pairs."""
    return Batch(
        rows=pairs * len(rows.groups),
        tokens=tokens,
        read=pairs * sum(group.logits for group in rows.groups),
        # the reference runs on one group after the other
        reference=pairs if any(group.reference for group in rows.groups) else 0,
        hidden=rows.hidden,
    )


def _over_layers(
    config: Any, blocks: range | None, peak_of: Callable[[Any, range | None], Counter[str]]
) -> Counter[str]:
    """The peak of a deep model from shallow ones: blocks that are alike take alike, and each adds the same.

    Blocks below those that are trained keep nothing for backward, blocks above keep what leads down to these.

    Args:
        config: of the deep model.
        blocks: those that are trained; None for all.
        peak_of: the peak of a model with this config, whose blocks in this range are trained; None for all.
    """
    depth = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    if depth <= _SHALLOW[1] or (kinds is not None and len(set(kinds)) > 1):
        return peak_of(config, blocks)

    def cut(below: int, trained: int, above: int) -> Counter[str]:
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = below + trained + above
        if kinds is not None:
            shallow.layer_types = list(kinds)[: below + trained + above]
        return peak_of(shallow, None if blocks is None else range(below, below + trained))

    few, more = _SHALLOW
    counts = (0, depth, 0) if blocks is None else (blocks.start, len(blocks), depth - blocks.stop)
    least = tuple(min(count, few) for count in counts)
    found = cut(*least)
    peak = {name: float(size) for name, size in found.items()}
    for place, count in enumerate(counts):
        if count > few:
            longer = cut(*(more if place == at else size for at, size in enumerate(least)))
            for name in peak:
                peak[name] += (count - few) / (more - few) * (longer[name] - found[name])
    return Counter({name: round(size) for name, size in peak.items()})


def _config_of(recipe: UnlearnRecipe) -> Any:
    from transformers import AutoConfig

    name = locate_model(recipe.model.name)
    try:
        return AutoConfig.from_pretrained(
            name, revision=recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.name: the config of {name} cannot be read: {str(error).splitlines()[0]}") from error


def _on_meta(
    recipe: UnlearnRecipe, config: Any, on_card: bool, blocks: range | None = None
) -> tuple[nn.Module, torch.dtype]:
    """The model of the recipe, without storage, of which these blocks are trained; None for all that the recipe names."""
    from transformers import AutoModelForCausalLM

    full = recipe.adapter is None
    chosen = torch.bfloat16 if on_card and recipe.model.dtype == "auto" else frozen_dtype(recipe.model)
    dtype = torch.float32 if full else chosen
    attention = attention_for(recipe.model, dtype, on_cpu=not on_card) or "sdpa"
    if attention == "flash_attention_2":
        attention = "sdpa"  # of the same memory, and it can be planned without a card
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if recipe.adapter is not None:
            model = add_adapter(model, recipe.adapter, blocks)
    if full and blocks is not None:
        train_only_blocks(model, blocks)
    return model, dtype


def _linear_weights(model: nn.Module) -> list[Tensor]:
    """What bitsandbytes would quantise: the frozen linear layers, without the head."""
    head = output_head(model)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    ]


def _weights(model: nn.Module, recipe: UnlearnRecipe) -> float:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    size = float(sum(value.numel() * value.element_size() for value in tensors.values()))
    if recipe.model.quantization:
        each = _QUANTISED[recipe.model.quantization]
        size += sum(value.numel() * (each - value.element_size()) for value in _linear_weights(model))
    return size


def _dequantised(model: nn.Module) -> float:
    """The largest quantised layer is multiplied as a bf16 copy."""
    return 2.0 * max((value.numel() for value in _linear_weights(model)), default=0)


def _optimizer_bytes(name: str) -> float:
    """Bytes of state a trained weight."""
    return next((size for part, size in _STATE_BYTES if part in name.lower()), 8.0)
