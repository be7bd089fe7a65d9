"""LoRA layers in one operation: the adapter's product is added into the base's output, and backward needs no full-size copies.

PEFT computes the product, its scaled copy and the sum one after the other, each as large as the layer's output, and backward
scales and sums again. The products are the same. A layer is computed by PEFT's own forward whenever it is not plain LoRA on a
frozen linear layer: with dropout, hooks on its parts, a disabled or merged adapter, or weights in another dtype than autocast's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llm_forget.model.kernel_trial import Difference, agrees, relative_difference
from llm_forget.model.weights import autocast_like

# Largest difference from PEFT's numbers, as a share of the largest one; rounding in bf16 is 4e-3.
_LARGEST = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
_ROWS = 16


class _Parts(NamedTuple):
    """What the operation reads: W (out, in), its bias (out,), A (r, in), B (out, r) and the scale."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scaling: float


class _FusedLora(torch.autograd.Function):
    """``x Wᵀ + bias + s (x Aᵀ) Bᵀ`` for x (…, in), in the dtype of W. W and bias get no gradient.

    Backward keeps x only if A is trained, and x Aᵀ (N, r) only if B is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        given = x.to(weight.dtype)
        rows = given.reshape(-1, x.shape[-1])
        down, up = a.to(weight.dtype), b.to(weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            small = rows @ down.T
            out = functional.linear(given, weight, bias)
            if _get_current_dispatch_mode() is None:
                out.view(-1, len(weight)).addmm_(small, up.T, alpha=scaling)
            else:  # selective checkpointing keeps the first product, which must not be changed
                out = torch.add(out, (small @ up.T).view(out.shape), alpha=scaling)
        _, _, _, of_a, of_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(weight, down, up, rows if of_a else None, small if of_b else None)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, a.dtype, b.dtype)
        return out  # no view: a model may change it in place, as Llama 4 does

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, down, up, rows, small = ctx.saved_tensors
        of_x, _, _, of_a, of_b, _ = ctx.needs_input_grad
        slopes = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        dx = da = db = None
        with torch.autocast(gradient.device.type, enabled=False):
            inner = slopes @ up if of_x or of_a else None
            if of_x:
                dx = (slopes @ weight).addmm_(inner, down, alpha=ctx.scaling).view(ctx.shape).to(ctx.dtypes[0])
            if of_a and inner is not None:
                da = (inner.T @ rows).mul_(ctx.scaling).to(ctx.dtypes[1])
            if of_b:
                db = (slopes.T @ small).mul_(ctx.scaling).to(ctx.dtypes[2])
        return dx, None, None, da, db, None


@contextmanager
def fused_lora(model: nn.Module, *, wanted: bool = True, say: Callable[[str], None] = lambda _: None) -> Iterator[int]:
    """In this context plain LoRA layers are computed in one operation.

    Args:
        model: wrapped or not, on its device, with or without an adapter.
        wanted: False to use PEFT's forward in any case.
        say: called with a note if the numbers or an error forbid it.

    Yields:
        The number of layers that may use it; each call decides.
    """
    layers = _usable(model, say) if wanted else []
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _usable(model: nn.Module, say: Callable[[str], None]) -> list[Any]:
    """The layers that may be computed in one operation, if it gives PEFT's numbers for the smallest of them."""
    from peft.tuners.lora.layer import Linear

    layers: list[Any] = [one for one in model.modules() if type(one) is Linear and "forward" not in vars(one)]
    plain: list[Any] = []

    def measured() -> list[Difference]:
        plain.extend(layer for layer in layers if _is_plain(layer) and _parts(layer, _dtype_of(layer)) is not None)
        if not plain:
            return []
        smallest = min(plain, key=lambda layer: layer.get_base_layer().weight.numel())
        return [(difference(smallest), _LARGEST[_dtype_of(smallest)], "of the largest number")]

    with autocast_like(model):
        used = agrees("LoRA in one operation", "PEFT computes the adapters", measured, say)
    return plain if used else []


def _forward(self: Any, x: Tensor, *args: Any, **more: Any) -> Tensor:
    parts = None if args or more or not _is_plain(self) else _parts(self, x.dtype)
    if parts is None:
        return type(self).forward(self, x, *args, **more)  # type: ignore[no-any-return]
    return _FusedLora.apply(x, *parts)  # type: ignore[no-any-return, no-untyped-call]


def _is_plain(layer: Any) -> bool:
    """Whether PEFT's forward would now be one plain adapter on a frozen linear layer, with nobody who watches its parts."""
    base, names = layer.base_layer, layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    name = names[0]
    if name in layer.lora_variant or layer.lora_bias.get(name):  # DoRA and its like
        return False
    dropout = layer.lora_dropout[name]
    if not isinstance(dropout, nn.Identity) and dropout.training and getattr(dropout, "p", 1.0) > 0:
        return False
    if not all(_is_untouched(part) for part in (base, layer.lora_A[name], layer.lora_B[name])):
        return False
    return not any(value.requires_grad for value in base.parameters())


def _is_untouched(part: nn.Module) -> bool:
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return type(part) is nn.Linear and "forward" not in vars(part) and not any(hooks)


def _parts(layer: Any, dtype: torch.dtype) -> _Parts | None:
    """What the operation reads for inputs of this dtype; None if PEFT's products would not be in the dtype of W."""
    name = layer.active_adapters[0]
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    kind, device = base.weight.dtype, base.weight.device.type
    if kind not in _LARGEST or {a.dtype, b.dtype} - {kind, torch.float32}:
        return None
    if torch.is_autocast_enabled(device):
        fits = kind == torch.get_autocast_dtype(device)
    else:
        fits = {dtype, a.dtype, b.dtype} == {kind}
    return _Parts(base.weight, base.bias, a, b, layer.scaling[name]) if fits else None


def _dtype_of(layer: Any) -> torch.dtype:
    return layer.base_layer.weight.dtype  # type: ignore[no-any-return]


def difference(layer: Any) -> float:
    """How far the operation is from PEFT's output and gradients on a few rows, as a share of the largest number of each.

    Args:
        layer: a plain LoRA layer; a copy of it gets random factors, because a new adapter's B is 0.
    """
    tried = copy.deepcopy(layer).eval()
    name, base = tried.active_adapters[0], tried.base_layer
    made = torch.Generator().manual_seed(0)
    factors = [tried.lora_A[name].weight, tried.lora_B[name].weight]
    with torch.no_grad():
        for factor in factors:
            factor.copy_(torch.randn(factor.shape, generator=made) / factor.shape[1] ** 0.5)
            factor.requires_grad_(True)
    x, slope = (
        torch.randn(_ROWS, size, generator=made).to(base.weight) for size in (base.in_features, len(base.weight))
    )
    found = []
    for forward in (type(tried).forward, _forward):
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            out = forward(tried, given)
            found.append([out.detach(), *torch.autograd.grad(out, [given, *factors], slope.to(out))])
    return relative_difference(found[1], found[0])
