"""Turn a base model's own dropout and router noise off while it is unlearned.

Losses that compare the policy with the reference assume that both are equal before the first step. The reference has no dropout,
so the base of the policy must have none. Dropout of the adapter stays on. TRL's DPO trainer does the same.

The base runs in eval mode, because noise has no common name: it is in modules, in arguments of functional calls, and in
routers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from llm_forget.model.head import below_wrapper
from llm_forget.model.structure import text_config

# Parts of a config field's name. Heads of classifiers have dropout of their own, and a causal language model has no such head.
_NOISE, _UNUSED = re.compile(r"drop|jitter|noise"), re.compile(r"classif|summary")
_FUNCTION = "_gradient_checkpointing_func"


@contextmanager
def steady_base(model: nn.Module) -> Iterator[list[str]]:
    """In this context, ``model.train()`` leaves the base in eval mode. Yields the noise that it has, as ``name value``.

    Gradient checkpointing, which transformers does in training mode only, stays on.

    Args:
        model: with or without an adapter, below or inside a data-parallel wrapper.
    """
    inner = below_wrapper(model)
    before = [(module, module.training) for module in inner.modules()]
    inner.train = MethodType(_train, inner)
    try:
        yield noise_of(inner)
    finally:
        del inner.train
        for module in inner.modules():
            if isinstance(function := vars(module).get(_FUNCTION), _InEval):
                setattr(module, _FUNCTION, function.checkpoint)
        for module, training in before:
            module.training = training


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """``nn.Module.train`` for the adapter, and eval mode for the base."""
    type(self).train(self, mode)
    if mode:
        for module in _base_modules(self):
            module.training = _checkpoints(module)
        self.training = True
    return self


def _base_modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules of the base below the outermost one; no module of an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    waiting = list(model.children())
    while waiting:
        module = waiting.pop()
        if isinstance(module, BaseTunerLayer):
            waiting.append(module.get_base_layer())
            continue
        yield module
        waiting += module.children()


def _checkpoints(module: nn.Module) -> bool:
    """Whether a module must stay in training mode, because it checks this before it checkpoints its ``forward``."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not getattr(module, "gradient_checkpointing", False):
        return False
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    if isinstance(module, GradientCheckpointingLayer) and not compiled:
        function = getattr(module, _FUNCTION)
        if not isinstance(function, _InEval):
            setattr(module, _FUNCTION, _InEval(module, function))
        return True
    return not _noise_in(vars(module))


class _InEval:
    """A checkpointing function that runs a block in eval mode, in the forward pass and again in backward."""

    def __init__(self, block: nn.Module, checkpoint: Callable[..., Any]) -> None:
        self.block, self.checkpoint = block, checkpoint

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        return self.checkpoint(partial(self._run, forward), *args)

    def _run(self, forward: Callable[..., Any], *args: Tensor) -> Any:
        before, self.block.training = self.block.training, False
        try:
            return forward(*args)
        finally:
            self.block.training = before


def noise_of(model: nn.Module) -> list[str]:
    """The noise that the base adds in training mode, as ``name value``, from its config and its dropout modules."""
    found = _noise_in(vars(text_config(model.config)))
    probabilities = {
        module.p
        for module in _base_modules(model)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    }
    if not found and probabilities:
        found = {"dropout": max(probabilities)}
    return [f"{name} {value:g}" for name, value in sorted(found.items())]


def _noise_in(values: Any) -> dict[str, float]:
    """The positive numbers whose names say dropout, jitter or noise."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, float) and value > 0 and _NOISE.search(name) and not _UNUSED.search(name)
    }
