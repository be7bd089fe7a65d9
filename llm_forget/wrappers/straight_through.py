"""Straight-through rounding (experimental): train with rounded merged weights, so that forgetting survives quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_forget.model.head import output_head
from llm_forget.wrappers import Setting, Wrapper


def rounded(weight: Tensor, *, bits: int, group: int) -> Tensor:
    """Symmetric rounding to ``2^bits − 1`` levels, one scale per ``group`` entries of a row, with the identity as gradient.

    Args:
        weight: (out, in) weights.
        bits: at least 2.
        group: number of entries that share a scale; the last group of a row may be shorter.

    Returns:
        (out, in) rounded weights. With 4 bits the levels are −7 … 7 times the scale max|w|/7: (0.7, 0.12) becomes (0.7, 0.1).

    Source: symmetric group-wise round-to-nearest, as in inference servers; straight-through gradients of Bengio et al. 2013,
    arXiv:1308.3432.
    """
    levels = 2 ** (bits - 1) - 1
    columns = weight.shape[-1]
    padded = functional.pad(weight.detach(), (0, -columns % group)).reshape(weight.shape[0], -1, group)
    scale = padded.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / levels
    held = ((padded / scale).round() * scale).flatten(-2)[..., :columns]
    passed: Tensor = weight + (held - weight.detach())
    return passed


@dataclass
class StraightThrough(Wrapper):
    """Experimental. Every linear layer that is trained or has an adapter uses its rounded merged weight in training.

    Measurements and the saved adapter or model are unrounded. Each forward forms one merged weight per layer, so memory is
    close to full fine-tuning. The details of the rounding are ours: see ``recipes/methods.md``.

    Attributes:
        bits: bits per weight, 2 to 8.
        group: number of weights that share a scale, at least 1.
    """

    bits: int = 4
    group: int = 64

    paper: ClassVar[str] = "arXiv:2605.02196; Bengio et al. 2013, arXiv:1308.3432"
    cost: ClassVar[str] = "one merged weight per layer"
    splits_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.group < 1:
            raise ValueError(
                f"straight_through: bits is {self.bits} and group is {self.group}; bits must be 2 to 8 and group at least 1"
            )

    def refuses(self, setting: Setting) -> str | None:
        """It needs whole, unquantised base weights."""
        if setting.quantized:
            return "it rounds the merged weight, and the base is already quantised: set model.quantization: null"
        if setting.sharded:
            return "it needs whole weights, and FSDP and DeepSpeed shard them: launch with ddp.yaml"
        return super().refuses(setting)

    def during(self, model: nn.Module) -> AbstractContextManager[object]:
        """Replace the forward of these layers."""
        return _rounding(model, self.bits, self.group)


@contextmanager
def _rounding(model: nn.Module, bits: int, group: int) -> Iterator[None]:
    head = output_head(model)
    before: list[tuple[nn.Module, Any]] = []
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    inside = {id(part) for module in adapted for part in module.modules()}
    try:
        for module in model.modules():
            forward: Any = None
            if id(module) not in inside:
                if isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad:
                    forward = partial(_plain_forward, module, bits, group)
            elif hasattr(module, "lora_A") and isinstance(module.get_base_layer(), nn.Linear):  # type: ignore[operator]
                forward = partial(_adapted_forward, module, module.forward, bits, group)
            if forward is not None:
                before.append((module, vars(module).get("forward")))
                module.forward = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward  # restores the forward of the class
            else:
                module.forward = own


def _plain_forward(module: nn.Linear, bits: int, group: int, x: Tensor) -> Tensor:
    return functional.linear(x, rounded(module.weight, bits=bits, group=group), module.bias)


def _adapted_forward(module: Any, original: Any, bits: int, group: int, x: Tensor, *args: Any, **more: Any) -> Tensor:
    if module.disable_adapters or module.merged:
        return original(x, *args, **more)  # type: ignore[no-any-return]
    base = module.get_base_layer()
    with torch.autocast(x.device.type, enabled=False):  # merge in fp32
        weight = base.weight.float()
        for name in module.active_adapters:
            if name in module.lora_A:
                weight = weight + module.scaling[name] * (module.lora_B[name].weight @ module.lora_A[name].weight)
        weight = rounded(weight, bits=bits, group=group)
    return functional.linear(x, weight.to(x.dtype), base.bias)
