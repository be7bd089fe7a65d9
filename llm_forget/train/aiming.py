"""What an adapter with ``inputs: forget`` looks at: moments of the forget rows and of rows to keep. Runs can share them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import evenly
from llm_forget.model.curvature import kept_metrics
from llm_forget.model.directions import adapted_layers, aim_adapter, aiming_moments
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.prepare import UnlearnSets
from llm_forget.utils.files import new_file

_KEPT = 160  # rows of each set to keep that are measured; with 64, neighbours depended on which rows these were
_MOST_BYTES = 4e9
_PARTS = ("forget", "keep", "curvature")


@dataclass(frozen=True)
class Aim:
    """Moments of a model before the first step, by layer.

    Attributes:
        forget: (d, d) of the inputs of the forget rows.
        keep: (d, d) of the inputs of the rows to keep.
        curvature: of the rows to keep in the layer's outputs (``model.curvature``); empty unless the optimizer is ``natural``.
    """

    forget: Mapping[str, Tensor]
    keep: Mapping[str, Tensor]
    curvature: Mapping[str, Tensor]


def aims(recipe: UnlearnRecipe) -> bool:
    """Whether a recipe asks for an aimed adapter."""
    return recipe.adapter is not None and recipe.adapter.inputs == "forget"


def measure_aim(
    recipe: UnlearnRecipe, model: Any, sets: UnlearnSets, more: Mapping[str, Sequence[Encoded]], pad_token_id: int
) -> Aim:
    """Measure the forget rows and a sample of the rows to keep.

    Args:
        recipe: the recipe.
        model: a PEFT model with a new adapter.
        sets: the rows.
        more: the rows of further retain terms, by set.
        pad_token_id: the padding token.
    """
    sample = [sets.retain[place] for place in evenly(len(sets.retain), _KEPT)]
    kept = [*sample, *(row for rows in more.values() for row in rows[:_KEPT])]
    forget = aiming_moments(model, sets.forget, pad_token_id)
    if recipe.train.optimizer != NATURAL:
        return Aim(forget, aiming_moments(model, kept, pad_token_id), {})
    return Aim(forget, *kept_metrics(model, kept, pad_token_id, seed=recipe.seed))


def aim(
    recipe: UnlearnRecipe,
    model: Any,
    sets: UnlearnSets,
    more: Mapping[str, Sequence[Encoded]],
    pad_token_id: int,
    stored: Path | None = None,
) -> dict[str, Tensor]:
    """Choose the inputs of a new adapter, if the recipe asks for it.

    Args:
        recipe: the recipe.
        model: the PEFT model.
        sets: the rows.
        more: the rows of further retain terms, by set.
        pad_token_id: the padding token.
        stored: file of ``write_aim``; None to measure.

    Returns:
        The curvature of trained layers for the optimizer ``natural``; empty for another one.
    """
    if not aims(recipe):
        return {}
    found = measure_aim(recipe, model, sets, more, pad_token_id) if stored is None else read_aim(stored)
    natural = recipe.train.optimizer == NATURAL
    aim_adapter(model, found.forget, found.keep, unit="keep" if natural else "forget")
    device = next(model.parameters()).device
    layers = adapted_layers(model)
    trained = {name for name, one in layers.items() if natural and one.lora_B["default"].weight.requires_grad}
    return {name: value.to(device) for name, value in found.curvature.items() if name in trained}


def write_aim(file: Path, found: Aim, name: str) -> None:
    """Write moments for other processes, with a name of what they were measured on. It holds no text."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, dict[str, str]] = {}
    for part in _PARTS:
        known: dict[int, str] = {}
        for layer, value in getattr(found, part).items():
            key = known.setdefault(id(value), f"{part}.{len(known)}")  # layers with the same inputs share a tensor
            tensors[key] = value.contiguous().cpu()
            places.setdefault(part, {})[layer] = key
    with new_file(file) as unfinished:
        save_file(tensors, unfinished, {"places": json.dumps(places), "name": name})


def read_aim(file: Path) -> Aim:
    """Read what ``write_aim`` wrote. The tensors stay in the file, so that processes share its pages."""
    with safe_open(file, framework="pt") as opened:
        places = json.loads(opened.metadata()["places"])
        tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    parts = [{name: tensors[key] for name, key in places.get(part, {}).items()} for part in _PARTS]
    return Aim(*parts)


def aim_name(file: Path) -> str | None:
    """The name in a file of moments; None if there is none."""
    try:
        with safe_open(file, framework="pt") as opened:
            return str(opened.metadata()["name"])
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def worth_sharing(model: Any) -> bool:
    """Whether reading the moments costs less than measuring them: on a CPU, and if they fit into 4 GB."""
    layers = [module.base_layer for module in adapted_layers(model).values()]
    widths = [(getattr(one, "in_features", 0), getattr(one, "out_features", 0)) for one in layers]
    size = sum(4 * (2 * given**2 + made**2) for given, made in widths)
    return next(model.parameters()).device.type == "cpu" and size <= _MOST_BYTES
