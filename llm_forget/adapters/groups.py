"""Scale an adapter with a separate strength for each group of layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.lora import Adapter, Factors
from llm_forget.errors import AdapterError

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def layer_of(module: str) -> int:
    """The number of the block that a module is in: the first number in its name.

    Raises:
        AdapterError: the name has no number.
    """
    match = _LAYER.search(module)
    if match is None:
        raise AdapterError(
            f"{module} belongs to no numbered layer, so layers cannot be grouped; search one strength for the whole "
            "adapter, or train with the linear layers of the blocks as target_modules only."
        )
    return int(match[1])


def layer_groups(adapter: Adapter, count: int) -> tuple[tuple[int, ...], ...]:
    """The layers that an adapter changes, in ``count`` groups of adjacent layers whose sizes differ by at most one.

    Raises:
        AdapterError: ``count`` is not between 1 and the number of layers, or a module is in no layer.
    """
    layers = sorted({layer_of(module) for module in adapter.modules})
    if not 1 <= count <= len(layers):
        raise AdapterError(
            f"{count} groups given; the adapter changes {len(layers)} layers, so give 1 to {len(layers)}."
        )
    edges = [round(index * len(layers) / count) for index in range(count + 1)]
    return tuple(tuple(layers[start:end]) for start, end in pairwise(edges))


def module_strengths(adapter: Adapter, groups: Sequence[Sequence[int]], strengths: Sequence[float]) -> dict[str, float]:
    """The strength of every module, from the strengths of the layer groups.

    Args:
        adapter: the adapter.
        groups: disjoint groups of layer numbers that contain every layer of the adapter.
        strengths: one per group, of any sign.

    Raises:
        AdapterError: not one finite strength per group, or the groups omit or repeat a layer.
    """
    if len(groups) != len(strengths) or not all(math.isfinite(strength) for strength in strengths):
        raise AdapterError(
            f"{len(groups)} groups and strengths {list(strengths)} given; give one finite number per group."
        )
    listed = [layer for group in groups for layer in group]
    left_out = sorted({layer_of(module) for module in adapter.modules} - set(listed))
    if left_out or len(set(listed)) != len(listed):
        fault = f"leave out layer {left_out[0]}" if left_out else "repeat a layer"
        raise AdapterError(
            f"groups {[list(group) for group in groups]} given, which {fault}; every layer of the adapter belongs in "
            "exactly one."
        )
    by_layer = {layer: strength for group, strength in zip(groups, strengths, strict=True) for layer in group}
    return {module: by_layer[layer_of(module)] for module in adapter.modules}


def scale_groups(adapter: Adapter, groups: Sequence[Sequence[int]], strengths: Sequence[float]) -> Adapter:
    """Multiply ΔW of each module by the strength of its layer group. Arguments and errors as for ``module_strengths``.

    The result is plain LoRA with the same ranks. Strengths are folded into B in fp32.
    """
    wanted = module_strengths(adapter, groups, strengths)
    plain = scale(adapter, 1.0)
    return replace(plain, modules=_times(plain.modules, wanted))


def _times(modules: Mapping[str, Factors], strengths: Mapping[str, float]) -> dict[str, Factors]:
    return {module: replace(factors, B=factors.B * strengths[module]) for module, factors in modules.items()}
