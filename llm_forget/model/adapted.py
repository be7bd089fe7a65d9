"""Put adapters from files on a loaded model, or into its weights.

The files are read strictly and passed on as plain LoRA, so that PEFT never sees a foreign config, whose patterns could match
nothing, or match for hours.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.adapters.arithmetic import delta, scale
from llm_forget.adapters.lora import Adapter, save_adapter
from llm_forget.errors import AdapterError
from llm_forget.model.weights import held_in_bf16, in_shards

log = logging.getLogger("llm_forget")
Change = Callable[[Tensor], Tensor]


def attach_adapter(model: Any, adapter: Adapter, name: str = "default") -> Any:
    """Attach an adapter with PEFT.

    Args:
        model: the base, or a ``PeftModel`` that gets one more adapter.
        adapter: plain LoRA for this base.
        name: its name in the model.

    Returns:
        The ``PeftModel``; the new adapter's factors are frozen.

    Raises:
        AdapterError: the model has no layer for some factors.
    """
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as scratch:
        saved = save_adapter(scale(adapter, 1.0), Path(scratch) / "adapter")
        if isinstance(model, PeftModel):
            model.load_adapter(saved, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, saved, adapter_name=name)
    inner = model.get_base_model()
    for module in adapter.modules:
        layer = _submodule(inner, module)
        if name not in getattr(layer, "lora_B", {}):
            raise _no_layer(module)
    return model


@contextmanager
def applied(model: nn.Module, adapter: Adapter, strength: float = 1.0) -> Iterator[None]:
    """Context in which an adapter acts on a model, as PEFT's would without gradients, and after which nothing of it stays.

    A hook per layer adds ``strength · scaling · B A x``, in bf16 for a model with bf16 weights, where PEFT under autocast also
    computes in bf16 but converts the inputs of each layer to fp32 and back first.

    Args:
        model: the base.
        adapter: plain LoRA for it.
        strength: the factor of B.

    Raises:
        AdapterError: the model has no layer for some factors.
    """
    kind = torch.bfloat16 if held_in_bf16(model) else torch.float32
    device = next(model.parameters()).device

    def changes() -> Iterator[tuple[nn.Module, Change]]:
        for module, factors in adapter.modules.items():
            a, b = factors.A.to(device, kind), (factors.B.float() * (factors.scaling * strength)).to(device, kind)
            yield _submodule(model, module), partial(low_rank, a, b)

    with added(changes()):
        yield


def low_rank(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """B A x (…, out) for x (…, in), A (r, in) and B (out, r), in the dtype of A."""
    return nn.functional.linear(nn.functional.linear(x.to(a.dtype), a), b)


@contextmanager
def added(changes: Iterable[tuple[nn.Module, Change]]) -> Iterator[None]:
    """Context in which something is added to the outputs of layers that depends on their inputs; gradients pass through it.

    Args:
        changes: layers, with a function from the input (…, in) of each to what is added to its output (…, out).
    """

    def hook(change: Change) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _, given, out: out + change(given[0]).to(out.dtype)

    with ExitStack() as stack:
        for layer, change in changes:
            stack.callback(layer.register_forward_hook(hook(change)).remove)
        yield


@contextmanager
def without_zero_adapter(model: Any) -> Iterator[None]:
    """Context in which layers skip a LoRA adapter that changes nothing yet, because all its B are zero.

    The outputs are the same: such an adapter adds zeros. It takes up to half of a forward pass of a small model.

    Args:
        model: with or without an adapter, wrapped or not. Other adapters stay in use, and so does one in shards, which do not
            show whether it is zero, or one of compiled blocks, which would be compiled twice.
    """
    factors = [value for name, value in model.named_parameters() if "lora_" in name]
    zero = [value for name, value in model.named_parameters() if "lora_B" in name]
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    skipped = compiled or not zero or not hasattr(model, "disable_adapter") or in_shards(model)
    if skipped or any(bool(one.any()) for one in zero):
        yield
        return
    trained = [value.requires_grad for value in factors]
    try:
        with model.disable_adapter():
            yield
    finally:
        for value, wanted in zip(factors, trained, strict=True):  # PEFT makes all of them trainable, also a fixed A
            value.requires_grad_(wanted)


@torch.no_grad()
def merge_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter's change to the weights in place, in fp32 and rounded once.

    Logs a note if nothing changes.

    Raises:
        AdapterError: the model lacks a layer, has it in another shape, or shares its weight with another module.
    """
    from transformers.pytorch_utils import Conv1D

    owners: dict[int, int] = {}
    for _, value in model.named_parameters(remove_duplicate=False):
        owners[id(value)] = owners.get(id(value), 0) + 1
    moved = False
    for module in adapter.modules:
        layer = _submodule(model, module)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise _no_layer(module)
        weight: Any = layer.weight
        if owners.get(id(weight), 0) > 1:
            raise AdapterError(
                f"the adapter changes {module}, whose weight the model also uses elsewhere (a tied head), so that both would "
                "change; train with the linear layers of the blocks as target_modules only"
            )
        change = delta(adapter, module).to(weight.device)
        change = change.T if isinstance(layer, Conv1D) else change
        if change.shape != weight.shape:
            raise AdapterError(
                f"the adapter changes {module} with shape {tuple(change.shape)}, but the model has {tuple(weight.shape)} there; "
                "give the base that it was trained on"
            )
        after = (weight.float() + change).to(weight.dtype)
        moved |= not torch.equal(weight, after)
        weight.copy_(after)
    if not moved:
        log.warning("note: the adapter changes nothing: its factors are zero, or too small for the weights")


def _submodule(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise _no_layer(name) from None


def _no_layer(module: str) -> AdapterError:
    return AdapterError(
        f"the adapter changes {module}, but the model has no such layer, so its factors would be dropped; give the base that it "
        "was trained on"
    )
