"""Which layers of an architecture get an adapter: linear layers of the text decoder that PEFT saves as plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_forget.adapters.patterns import matches
from llm_forget.errors import AdapterError, RecipeError
from llm_forget.model.structure import text_config, text_decoder

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Targets:
    """The layers of a model that get an adapter.

    Attributes:
        names: full module names, in the order of the model.
        left_out: a sentence about layers that keep their weights although they may be expected to be adapted; None if there
            are none.
    """

    names: list[str]
    left_out: str | None


def blocks_by_name(model: nn.Module) -> dict[str, int]:
    """Name of each block of the text decoder → its number. Some models hold a block in several lists."""
    decoder, depth = text_decoder(model), depth_of(model)
    names = {module: name for name, module in model.named_modules()}
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    found: dict[str, int] = {}
    for blocks in lists:
        name = names.get(blocks)
        if name is not None and not any(name.startswith(f"{outer}.") for outer in found):
            found |= {f"{name}.{index}": index for index in range(depth)}
    return found


def depth_of(model: nn.Module) -> int:
    """The number of blocks of the text decoder.

    Raises:
        RecipeError: the config does not say it.
    """
    inner: Any = model
    return config_depth(inner.config)


def config_depth(config: Any) -> int:
    """The number of blocks, from a transformers config; of a multimodal model, those of its text decoder.

    Raises:
        RecipeError: the config does not say it.
    """
    text = text_config(config)
    depth = getattr(text, "num_hidden_layers", None) or getattr(text, "num_layers", None)
    if not isinstance(depth, int):
        raise RecipeError(
            f"the config of this {text.model_type} model has no num_hidden_layers, so its blocks cannot be counted; use a "
            "causal language model of transformers"
        )
    return depth


def in_blocks(names: Collection[str], known: dict[str, int], blocks: Collection[int]) -> list[str]:
    """The names inside the given blocks.

    Args:
        names: names of modules or parameters.
        known: the model's blocks, from ``blocks_by_name``.
        blocks: numbers of blocks.
    """
    inside = tuple(f"{name}." for name, index in known.items() if index in blocks)
    return [name for name in names if name.startswith(inside)]


def adapter_targets(model: nn.Module, wanted: str | list[str], blocks: Collection[int] | None) -> Targets:
    """Select the layers that get an adapter.

    "all-linear" selects the linear layers of the text decoder (``nn.Linear`` and GPT-2's ``Conv1D``) without the head, without
    routers of experts, and without the layers of a state-space mixer whose weights its kernels read directly. Lists and regular
    expressions select among all linear layers of the decoder and the head, matched as in PEFT.

    Layers that PEFT would turn into LoRA on fused expert weights are left out: an adapter on these is not B·A on linear layers.

    Args:
        model: the base.
        wanted: ``adapter.target_modules``.
        blocks: numbers of the blocks that get an adapter; None for the whole decoder.

    Raises:
        RecipeError: no layer is selected, or an embedding or a convolution is named.
    """
    linear = _linear_layers(model)
    default = isinstance(wanted, str) and wanted.lower() == ALL_LINEAR
    if isinstance(wanted, str) and not default:
        _try_pattern(model, wanted)
    if default:
        names = [name for name in linear if not _is_special(model, name)]
    else:
        names = [name for name in linear if _matches(name, wanted)]
        _refuse_others(model, wanted)
    if blocks is not None:
        names = in_blocks(names, blocks_by_name(model), blocks)
    fused = _redirected_by_peft(model, {name.rpartition(".")[2] for name in names})
    kept = [name for name in names if name.rpartition(".")[2] not in fused]
    if not kept:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear} - fused))
        where = "" if blocks is None else f" in blocks {min(blocks)} to {max(blocks)}"
        fault = "but those that PEFT takes for fused experts" if names else where.strip()
        raise RecipeError(
            f"adapter.target_modules: {wanted!r} matches no layer of the model {fault}".rstrip()
            + f"; linear layers of this {_type_of(model)} model are {known or 'none'}"
        )
    return Targets(kept, _left_out(model, kept, default=default))


def _type_of(model: nn.Module) -> str:
    inner: Any = model
    return str(getattr(inner.config, "model_type", type(model).__name__))


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name → linear layer, of the text decoder and the head."""
    from transformers.pytorch_utils import Conv1D

    inner: Any = model
    used = set(text_decoder(model).modules()) | {inner.get_output_embeddings()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in used
    }


def _matches(name: str, wanted: str | list[str]) -> bool:
    """Whether PEFT would select a module: a regular expression for the full name, or a list of name suffixes."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in wanted)


def _try_pattern(model: nn.Module, wanted: str) -> None:
    """Match an expression once, in bounded time, against all names against which it is matched below and in PEFT."""
    try:
        matches([wanted], [name for name, _ in model.named_modules()], "full", "it")
    except AdapterError as error:
        raise RecipeError(f"adapter.target_modules: {wanted[:60]!r} matches no layer of the model: {error}") from error


def _is_special(model: nn.Module, name: str) -> bool:
    """Whether the default leaves a linear layer out: the head, a router, or a layer that a kernel bypasses."""
    inner: Any = model
    if model.get_submodule(name) is inner.get_output_embeddings():
        return True
    parts = name.split(".")
    if {"router", "gate"} & set(parts):
        return True
    # The kernels of state-space mixers take these weights as tensors, so that an adapter's forward would not run.
    mixer = model.get_submodule(".".join(parts[:-1]))
    return isinstance(getattr(mixer, "D", None), nn.Parameter) and parts[-1] != "in_proj"


def _refuse_others(model: nn.Module, wanted: str | list[str]) -> None:
    """Refuse embeddings and convolutions, which PEFT would adapt in a form that is not B·A of a linear layer.

    And a head that is tied to the embeddings, because merging would change both.
    """
    inner: Any = model
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | convolutions) and _matches(name, wanted):
            kind = "an embedding" if isinstance(module, nn.Embedding) else "a convolution"
            raise RecipeError(
                f"adapter.target_modules: {wanted!r} names {name}, {kind}; name linear layers only, or use {ALL_LINEAR!r}"
            )
        if module is head and _matches(name, wanted) and module.weight is embedding.weight:
            raise RecipeError(
                f"adapter.target_modules: {wanted!r} names {name}, which this model ties to its embeddings, so that both would "
                f"change; leave it out, or use {ALL_LINEAR!r}"
            )


def _redirected_by_peft(model: nn.Module, leaves: Collection[str]) -> set[str]:
    """The last name components that PEFT reads as experts of Transformers 4 and replaces by ``target_parameters``.

    It does so for every layer of that name, also when it loads an adapter, and so also for linear layers of that name.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older PEFT converts nothing
        return set()
    from peft import LoraConfig

    found = set()
    for leaf in leaves:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several names that are fused together
            found.add(leaf)
            continue
        if leaf not in config.target_modules:
            found.add(leaf)
    return found


def _left_out(model: nn.Module, kept: Collection[str], *, default: bool) -> str | None:
    """What is not adapted in a mixture of experts or a state-space model, in one sentence."""
    inner: Any = model
    head = inner.get_output_embeddings()
    changed = f"the adapter changes {_leaves(kept)}"
    if _has_experts(model):
        fused = "fused experts" if any("expert" in name for name in kept) else "experts"
        return f"{changed}; routers and {fused} keep their weights"
    bypassed = [
        name
        for name, module in _linear_layers(model).items()
        if default and module is not head and _is_special(model, name)
    ]
    return f"{changed}; {_leaves(bypassed)} keep their weights, because kernels bypass the layers" if bypassed else None


def _leaves(names: Collection[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _has_experts(model: nn.Module) -> bool:
    return any("expert" in f"{name}.{type(module).__name__}".lower() for name, module in model.named_modules())
