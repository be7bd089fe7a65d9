"""Copy, restore and gather a model's weights, sharded or not, and check their dtype."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. If it is sharded (FSDP2, ZeRO-3), gather it; all processes must make the same call."""
    if hasattr(tensor, "full_tensor"):  # FSDP2 keeps DTensors
        return tensor.full_tensor()  # type: ignore[no-any-return]
    if hasattr(tensor, "ds_id"):  # ZeRO-3 keeps an empty placeholder
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def in_shards(model: nn.Module) -> bool:
    """Whether the weights are sharded by FSDP2 or ZeRO-3; also true for a single process."""
    return any(hasattr(value, "full_tensor") or hasattr(value, "ds_id") for value in model.parameters())


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into a tensor that may be sharded; each process keeps its part."""
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
    """A copy of the trainable weights by name, gathered and on the CPU."""
    return {
        name: whole(value).detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad
    }


def restore_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore the weights that ``trainable_state`` copied, and leave the others.

    The names decide, not ``requires_grad``: leaving PEFT's ``disable_adapter`` makes the whole adapter trainable, also a fixed A.
    """
    for name, value in model.named_parameters():
        if name in state:
            put(value, state[name])


def frozen_copy(model: nn.Module) -> nn.Module:
    """A frozen copy of the whole model, as a reference for runs without an adapter to disable."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def autocast_like(model: nn.Module) -> torch.autocast:
    """Autocast to bf16 for a model with bf16 weights, as in training; no autocast for any other."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=held_in_bf16(model))


@contextmanager
def exact(*values: Tensor) -> Iterator[None]:
    """Context for products, summed in fp32, of tensors that were converted to fp32.

    An enclosing autocast would compute and round them in half precision. If all values were in bf16, a CPU with instructions for
    bf16 may multiply them as such: the products are the same, and take a third of the time.

    Args:
        values: the tensors before they were converted, on one device. If what is multiplied was computed from them in fp32,
            such as unit vectors, it is rounded to bf16 as well.
    """
    precision: Any = getattr(torch.backends.mkldnn, "matmul", None)
    on_cpu = all(value.device.type == "cpu" and value.dtype == torch.bfloat16 for value in values)
    before = getattr(precision, "fp32_precision", None) if on_cpu else None
    with torch.autocast(values[0].device.type, enabled=False):
        if before is None:
            yield
            return
        precision.fp32_precision = "bf16"
        try:
            yield
        finally:
            precision.fp32_precision = before


def held_in_bf16(model: nn.Module) -> bool:
    """Whether the base weights are in bf16. Their adapter is in fp32 in any case."""
    return next(model.parameters()).dtype == torch.bfloat16
