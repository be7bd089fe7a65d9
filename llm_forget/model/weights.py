"""The trained weights as plain tensors: taken out, put back and gathered, whether they lie whole or in shards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of it where this process holds a shard; every process has to call this alike."""
    if hasattr(tensor, "full_tensor"):  # FSDP2 keeps DTensors
        return tensor.full_tensor()  # type: ignore[no-any-return]
    if hasattr(tensor, "ds_id"):  # ZeRO-3 keeps an empty stand-in
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def in_shards(model: nn.Module) -> bool:
    """Whether this process holds shards of the weights; a single process under FSDP2 or ZeRO-3 does, too."""
    return any(hasattr(value, "full_tensor") or hasattr(value, "ds_id") for value in model.parameters())


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded: each process keeps its part."""
    if hasattr(target, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
            target.copy_(value)
        return
    placements = getattr(target, "placements", None)
    if placements is None:
        target.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = target.device_mesh  # type: ignore[attr-defined]
    target.copy_(distribute_tensor(value.to(target.device, target.dtype), mesh, placements))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is being trained, whole and on the CPU."""
    return {
        name: whole(value).detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad
    }


def restore_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``trainable_state`` took."""
    for name, value in model.named_parameters():
        if value.requires_grad:
            put(value, state[name])


def frozen_copy(model: nn.Module) -> nn.Module:
    """A second, untrainable copy of all weights: the last resort for a reference, where there is no adapter to switch off."""
    return copy.deepcopy(model).requires_grad_(False).eval()
