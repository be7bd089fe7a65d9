"""Predict the memory of a run: simulate one training step of the real model on fake tensors."""

from __future__ import annotations

import copy
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.memory.step import Batch, PlannedStep
from llm_forget.model.batching import BATCH_TOKENS
from llm_forget.model.blocks import add_adapter, top_blocks, train_only_blocks
from llm_forget.model.checkpointing import check_checkpointing, checkpointing_arguments
from llm_forget.model.curvature import WIDEST
from llm_forget.model.directions import WIDEST as WIDEST_INPUT
from llm_forget.model.directions import adapted_layers
from llm_forget.model.head import output_head
from llm_forget.model.kinds import check_attention, check_config
from llm_forget.model.limits import position_limit
from llm_forget.model.load import attention_for, frozen_dtype, read_config
from llm_forget.model.lower import MOST_SHARE
from llm_forget.model.structure import text_config
from llm_forget.model.targets import blocks_by_name, config_depth
from llm_forget.train.aiming import aims
from llm_forget.train.build import build_method, chosen_layer, planned_objective, trained_blocks
from llm_forget.train.default import hidden_size, settled
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.origin import has_base
from llm_forget.train.step_rows import StepRows
from llm_forget.utils.pretrained import explained

GB = 10**9
# GPU memory besides tensors: the CUDA context, cuBLAS workspaces, and fragmentation of the allocator.
CARD_FIXED, CARD_SHARE = 1.2e9, 0.05
# Bytes per weight of a quantised linear layer: nf4 has an fp32 scale for every 64 weights, int8 one for every row.
_QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
MOST_PAIRS = 1024  # of a micro-batch; nobody needs more
_SHALLOW = (2, 4)  # numbers of layers of the shallow models that are simulated instead of a deep one
_STATE_BYTES = (
    ("8bit", 2.1),
    ("4bit", 1.1),
    ("adafactor", 0.1),
    ("sgd", 0.0),
    ("lion", 4.0),
    ("natural", 4.0),
    ("adam", 8.0),
)


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a training step, by purpose.

    Attributes:
        weights: the model's weights, frozen or trained.
        adapter: the adapter's weights.
        optimizer: the optimizer state.
        gradients: the gradients of the trained weights.
        reference: a second copy of the weights, or the base of a method that trains on it; 0 if neither is needed, because the
            adapter can be disabled or the reference log-probs are stored.
        activations: all other memory at the peak, except logits.
        logits: tensors whose last dimension is the vocabulary.
        best_state: a copy of the trained weights in CPU memory, to restore the best state.
        rows: rows per micro-batch, forget and retain together.
        tokens: tokens per row.
        on_card: whether the plan is for a GPU.
        lower_states: the states of rows below the first trained block, in CPU memory.
        gathered: with sharded weights, the embedding, the head and two blocks, which are whole while they compute.
        preparing: what choosing the inputs of an aimed adapter takes at its peak, above what the steps take later.
        operations: floating-point operations of the micro-batch: forward, backward, and the reference if it runs in a step.
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
    lower_states: float = 0.0
    gathered: float = 0.0
    preparing: float = 0.0
    operations: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        parts = [self.weights, self.adapter, self.optimizer, self.gradients, self.reference]
        parts += [self.activations, self.logits, self.gathered, self.preparing]
        return sum(parts) if self.on_card else sum(parts) + self.best_state + self.lower_states

    @property
    def needed(self) -> float:
        """Bytes that the device must have; on a GPU, including memory besides tensors."""
        return self.total * (1 + CARD_SHARE) + CARD_FIXED if self.on_card else self.total


def plan(
    recipe: UnlearnRecipe,
    *,
    on_card: bool,
    tokens: int | None = None,
    model_config: Any = None,
    data_rows: int | None = None,
    shards: int = 1,
) -> Plan:
    """Plan one run from the model's config, without its weights.

    Args:
        recipe: the checked recipe.
        on_card: True for a GPU with bf16 support, False for this machine's CPU.
        tokens: tokens of the longest row; by default ``encoding.max_length``, which no row exceeds.
        model_config: a transformers config; by default the config of the recipe's model.
        data_rows: rows of all sets; by default as many as the states of frozen blocks may take memory.
        shards: number of GPUs over which FSDP2 or ZeRO-3 shards weights, gradients and optimizer state.

    Raises:
        RecipeError: the recipe cannot work or cannot be sharded, or the model's config cannot be read.
    """
    recipe = settled(recipe, base=has_base(recipe))
    if shards > 1:
        _check_shards(recipe)
    method, objective = build_method(recipe), planned_objective(recipe)
    rows = objective.rows
    config = model_config or read_config(recipe.model)
    with explained("model", recipe.model.name):  # its config may describe anything
        check_config(config, recipe.model.name)
        check_attention(recipe.model.attention, config)
        model, held = _on_meta(recipe, config, on_card)
        check_checkpointing(model, recipe.train.gradient_checkpointing)
        longest = min(
            tokens or recipe.encoding.max_length, position_limit(model) or sys.maxsize
        )  # longer rows are refused
        batch = _batch(rows, recipe.train.batch_size, longest)
        blocks = top_blocks(recipe.adapter, config_depth(config)) if recipe.adapter is not None else None
        chosen = trained_blocks(method, model, chosen_layer(objective))
        if chosen is not None:
            blocks = range(min(chosen), max(chosen) + 1)
            model, held = _on_meta(recipe, config, on_card, blocks)
        sizes = _weights(model, recipe)
        gathered = _gathered(model) if shards > 1 else 0.0
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        added = sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)

        def peak_of(config: Any, blocks: range | None) -> Counter[str]:
            model, dtype = _on_meta(recipe, config, on_card, blocks)
            try:
                return PlannedStep(model, batch, on_card=on_card).peak(
                    autocast=dtype == torch.bfloat16,
                    checkpointing=checkpointing_arguments(recipe.train.gradient_checkpointing),
                    accumulate=recipe.train.gradient_accumulation > 1,
                )
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                raise RecipeError(
                    f"the memory of this {config.model_type} model cannot be planned, because its code depends on the values "
                    f"of tensors ({error.func}); measure a run of one step instead"
                ) from error

        def aim_of(config: Any, blocks: range | None) -> Counter[str]:
            model, dtype = _on_meta(recipe, config, on_card, blocks)
            fits = max(1, BATCH_TOKENS // longest)
            reads = fits if recipe.train.optimizer == NATURAL else 0
            return PlannedStep(model, Batch(fits, longest, reads), on_card=on_card).preparing(
                autocast=dtype == torch.bfloat16
            )

        peak = _over_layers(config, blocks, peak_of)
        first = _over_layers(config, blocks, aim_of) if aims(recipe) else Counter()
    adapter = 4.0 * added
    weights = sizes - adapter
    state = _optimizer_bytes(recipe.train.optimizer) * trained / shards + _metrics(model, recipe)
    steps = state + 4.0 * trained / shards + max(peak["all"] - 4.0 * trained, 0.0)
    workspace = _dequantised(model) if recipe.model.quantization else 0.0
    checks = 0 if method.towards else 1
    copies = method.needs.base_weights or (batch.reference and recipe.adapter is None)
    lower = 0.0
    if blocks is not None and blocks.start > 0 and not recipe.train.compile:
        width = hidden_size(config)
        unknown = data_rows is None or width is None
        rows_size = math.inf if unknown else float((data_rows or 0) * longest * (width or 0) * held.itemsize)
        lower = min(MOST_SHARE * weights, rows_size)
    return Plan(
        weights=weights / shards,
        adapter=adapter / shards,
        optimizer=state,
        gradients=4.0 * trained / shards,
        reference=weights / shards if copies else 0.0,
        activations=max(peak["all"] - peak["logits"] - 4.0 * trained, 0.0) + workspace,
        logits=float(peak["logits"]),
        best_state=4.0 * trained * checks,
        rows=batch.rows,
        tokens=batch.tokens,
        on_card=on_card,
        lower_states=lower,
        gathered=gathered,
        preparing=max(first["all"] - steps, 0.0),
        operations=float(peak["operations"]),
    )


def largest_batch(recipe: UnlearnRecipe, memory: float, **how: Any) -> int:
    """The largest ``train.batch_size`` whose plan fits into ``memory`` bytes, at most ``MOST_PAIRS``; 0 if not even 1 fits."""

    def needed(size: int) -> float:
        return plan(replace(recipe, train=replace(recipe.train, batch_size=size)), **how).needed

    known = {1: needed(1)}
    if known[1] > memory:
        return 0
    if needed(MOST_PAIRS) <= memory:
        return MOST_PAIRS
    guess, top = 2, None
    while top is None or top - max(size for size, bytes_ in known.items() if bytes_ <= memory) > 1:
        known[guess] = needed(guess)
        low = max(size for size, bytes_ in known.items() if bytes_ <= memory)
        top = min((size for size, bytes_ in known.items() if bytes_ > memory), default=None)
        # each row adds about the same memory, so linear interpolation between two plans gives a good guess
        near, far = sorted(known, key=lambda size: abs(known[size] - memory))[:2]
        slope = (known[near] - known[far]) / (near - far)
        line = near + math.floor((memory - known[near]) / slope) if slope > 0 else low * 2
        guess = max(low + 1, min(line, low * 16 if top is None else top - 1))
    return low


def parse_memory(text: str) -> float:
    """Convert a size such as ``40GB``, ``24 GiB`` or ``512MB`` to bytes.

    Raises:
        RecipeError: the text is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT])(i?)[bB]?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise RecipeError(f"memory {text!r} is not a size; give for example 40GB or 24GiB")
    unit = 1024.0 if found[3] else 1000.0
    power = "kmgt".index(found[2].lower()) + 1
    return float(found[1]) * math.pow(unit, power)


def _batch(rows: StepRows, pairs: int, tokens: int) -> Batch:
    """A micro-batch of ``pairs`` pairs."""
    return Batch(
        rows=pairs * len(rows.groups),
        tokens=tokens,
        read=pairs * sum(group.logits for group in rows.groups),
        # the reference runs on one group per forward pass
        reference=pairs if any(group.reference for group in rows.groups) else 0,
        hidden=rows.hidden,
    )


def _over_layers(
    config: Any, blocks: range | None, peak_of: Callable[[Any, range | None], Counter[str]]
) -> Counter[str]:
    """Extrapolate the peak of a deep model from shallow ones, because each equal block adds the same memory.

    Blocks below the trained ones keep nothing for backward. Blocks above them keep the activations that backward needs to reach
    the trained ones. So the three kinds are counted separately.

    Args:
        config: the config of the deep model.
        blocks: the trained blocks; None for all.
        peak_of: (config, trained blocks or None for all) → the peak of that model.
    """
    depth = config_depth(config)
    kinds = getattr(text_config(config), "layer_types", None)
    if depth <= _SHALLOW[1] or (kinds is not None and len(set(kinds)) > 1):
        return peak_of(config, blocks)

    def cut(below: int, trained: int, above: int) -> Counter[str]:
        shallow = copy.deepcopy(config)
        text = text_config(shallow)
        text.num_hidden_layers = below + trained + above
        if kinds is not None:
            text.layer_types = list(kinds)[: below + trained + above]
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


def _on_meta(
    recipe: UnlearnRecipe, config: Any, on_card: bool, blocks: range | None = None
) -> tuple[nn.Module, torch.dtype]:
    """The recipe's model on the meta device, with only these blocks trained; None for all blocks that the recipe trains."""
    from transformers import AutoModelForCausalLM

    full = recipe.adapter is None
    chosen = torch.bfloat16 if on_card and recipe.model.dtype == "auto" else frozen_dtype(recipe.model)
    dtype = torch.float32 if full else chosen
    attention = attention_for(recipe.model, dtype, on_cpu=not on_card)
    if attention == "flash_attention_2":
        attention = None  # sdpa needs the same memory, and can be simulated without a GPU
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if recipe.adapter is not None:
            model = add_adapter(model, recipe.adapter, blocks)
            if aims(recipe):
                _train_outputs(model)
    if full and blocks is not None:
        train_only_blocks(model, blocks)
    return model, dtype


def _train_outputs(model: nn.Module) -> None:
    """Train B alone, where the layer is not too wide, as ``directions.aim_adapter`` does."""
    for module in adapted_layers(model).values():
        module.lora_A["default"].weight.requires_grad_(False)
        if module.lora_A["default"].in_features > WIDEST_INPUT:
            module.lora_B["default"].weight.requires_grad_(False)


def _linear_weights(model: nn.Module) -> list[Tensor]:
    """The weights that bitsandbytes would quantise: the frozen linear layers, without the head."""
    head = output_head(model)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    ]


def _weights(model: nn.Module, recipe: UnlearnRecipe) -> float:
    """Bytes of all parameters and buffers; tied ones count once."""
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    size = float(sum(value.numel() * value.element_size() for value in tensors.values()))
    if recipe.model.quantization:
        each = _QUANTISED[recipe.model.quantization]
        size += sum(value.numel() * (each - value.element_size()) for value in _linear_weights(model))
    return size


def _check_shards(recipe: UnlearnRecipe) -> None:
    if recipe.model.quantization:
        raise RecipeError(
            f"model.quantization {recipe.model.quantization} cannot be sharded; plan for one GPU, on each of which the quantised "
            "model fits (ddp.yaml), or remove it"
        )
    if recipe.train.optimizer == NATURAL:
        raise RecipeError(
            "train.optimizer natural, which a recipe without a method has, cannot be sharded: it needs whole weights; name a "
            "method, for example --method.name npo"
        )


def _gathered(model: nn.Module) -> float:
    """Bytes of the parameters outside the blocks, which stay whole, and of two blocks: the next one comes while one computes."""
    blocks = [model.get_submodule(name) for name in blocks_by_name(model)]
    inside = {id(value) for block in blocks for value in block.parameters()}
    outside = {id(value): _size(value) for value in model.parameters() if id(value) not in inside}
    return sum(outside.values()) + 2 * max((sum(map(_size, block.parameters())) for block in blocks), default=0.0)


def _size(value: Tensor) -> float:
    return float(value.numel() * value.element_size())


def _dequantised(model: nn.Module) -> float:
    """Bytes of the largest quantised layer in bf16, which is dequantised to a bf16 copy for its product."""
    return 2.0 * max((value.numel() for value in _linear_weights(model)), default=0)


def _metrics(model: nn.Module, recipe: UnlearnRecipe) -> float:
    """Bytes of the curvature that the optimizer ``natural`` keeps of each adapted layer, in fp32."""
    if recipe.train.optimizer != NATURAL:
        return 0.0
    outputs = [value for name, value in model.named_parameters() if "lora_B" in name and value.requires_grad]
    widths = [value.shape[0] for value in outputs]
    return 4.0 * sum(width**2 for width in widths if width <= WIDEST)


def _optimizer_bytes(name: str) -> float:
    """Bytes of optimizer state per trained weight."""
    return next((size for part, size in _STATE_BYTES if part in name.lower()), 8.0)
