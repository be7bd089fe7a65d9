"""Put the base's weights under an adapter for a while, so that it trains on the model before it learned the forget rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm_forget.errors import RecipeError
from llm_forget.model.lower import hold, lower_states
from llm_forget.train.launch import is_sharded
from llm_forget.train.origin import OpenBase

_PREFIX, _WRAPPED = "base_model.model.", ".base_layer."  # as PEFT names the weights below an adapter


@contextmanager
def base_in_place(model: nn.Module, open_base: OpenBase) -> Iterator[None]:
    """In this context the frozen weights of a model are those of the base; the adapter stays as it is.

    The two models exchange their weights in place, tensor by tensor, so that no third copy is needed.

    Args:
        model: a ``PeftModel`` with one adapter.
        open_base: opens the base.

    Raises:
        RecipeError: the weights are quantised or sharded, or the base has other layers.
    """
    if is_sharded():
        raise RecipeError(
            "a direction from the base cannot be trained with sharded weights; launch with ddp.yaml or one process"
        )
    with open_base() as base:
        pairs = _pairs(model, base)
        states = lower_states(model)
        hold(model, None)  # the states below the first trained block are those of the model, not of the base
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)
            hold(model, states)


def _pairs(model: nn.Module, base: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each frozen weight of the model with that of the base."""
    own = {_plain(name): value for name, value in model.named_parameters() if "lora_" not in name}
    theirs = dict(base.named_parameters())
    if any(type(value) is not nn.Parameter for value in own.values()):
        raise RecipeError(
            "a direction from the base cannot be trained with quantised weights; set model.quantization to null"
        )
    same = own.keys() == theirs.keys() and all(own[name].shape == theirs[name].shape for name in own)
    if not same or any(own[name] is theirs[name] for name in own):
        raise RecipeError(
            "a direction from the base needs a base with the layers of the model, loaded separately: set base to the folder or "
            "hub id of the model before it was fine-tuned"
        )
    return [(own[name], theirs[name]) for name in own]


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(_WRAPPED, ".")


@torch.no_grad()
def _exchange(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for own, other in pairs:
        held = own.clone()
        own.copy_(other)
        other.copy_(held)
