"""The adapter in whose weights attribution is computed: a new one for the time of the search, or the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_forget.config import AdapterConfig
from llm_forget.errors import AdapterError, UserError
from llm_forget.model.blocks import add_adapter
from llm_forget.model.weights import in_shards

_LORA = "lora_"


@contextmanager
def search_adapter(model: Any, config: AdapterConfig | None = None, *, seed: int = 0) -> Iterator[Any]:
    """In this context a model has a trainable LoRA adapter. Afterwards its layers, weights and flags are as before.

    A model without an adapter gets a new one. Its factors B start at zero, so the model computes the same as before. Its
    factors A are random and stay frozen, which makes the gradient of B a random projection of the gradient of the whole weight
    matrix: inner products of such gradients estimate those of the whole gradients (Choe et al. 2024, arXiv:2405.13954). A
    ``PeftModel`` keeps its active adapter, of which both factors are trained.

    Args:
        model: a causal language model on its device, or a ``PeftModel`` with LoRA.
        config: the new adapter; rank 16 on all linear layers by default. Not used for a ``PeftModel``.
        seed: determines the new factors A. Processes with the same seed have the same adapter.

    Yields:
        The model with the adapter; only the adapter's factors need gradients.

    Raises:
        UserError: the weights are sharded.
        AdapterError: the active adapter of a ``PeftModel`` has no LoRA factors on linear layers.
    """
    if in_shards(model):
        raise UserError(
            "attribution needs the whole model in each process, and these weights are sharded; load it without FSDP and ZeRO-3"
        )
    own = hasattr(model, "get_base_model")
    flags = [(value, value.requires_grad, value.grad) for value in model.parameters()]
    adapted = model if own else _with_adapter(model, config or AdapterConfig(), seed)
    try:
        trained = [layer.weight for layer in lora_layers(adapted, "AB" if own else "B").values()]
        if not trained:
            raise AdapterError(
                "the model's active adapter has no LoRA factors on linear layers, so attribution has no weights to work in; "
                "give a model without an adapter, or one with a LoRA adapter"
            )
        before = [value.detach().clone() for value in trained] if own else []
        for value in adapted.parameters():
            value.requires_grad_(False)
            value.grad = None
        for value in trained:
            value.requires_grad_(True)
        try:
            yield adapted
        finally:
            with torch.no_grad():
                for value, old in zip(trained, before, strict=False):
                    value.copy_(old)
    finally:
        if not own:
            adapted.unload()
        for value, required, gradient in flags:
            value.requires_grad_(required)
            value.grad = gradient


def lora_layers(model: nn.Module, sides: str = "AB") -> dict[str, nn.Linear]:
    """The linear layers that are factors of the active adapters, by name.

    Args:
        model: a ``PeftModel``.
        sides: ``A``, ``B`` or ``AB``.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for side in sides:
            factors = getattr(module, f"{_LORA}{side}", {})
            for adapter in module.active_adapters:
                layer = factors[adapter] if adapter in factors.keys() else None  # noqa: SIM118 (a ModuleDict has no get)
                if isinstance(layer, nn.Linear):
                    found[f"{name}.{_LORA}{side}.{adapter}"] = layer
    return found


def _with_adapter(model: nn.Module, config: AdapterConfig, seed: int) -> Any:
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return add_adapter(model, config)
