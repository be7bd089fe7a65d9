"""Change the strength of a model's own adapter for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from llm_forget.auditing.forms import Form


@contextmanager
def scaled(model: nn.Module, strength: float) -> Iterator[None]:
    """In this context, every LoRA layer of the model has its scaling times ``strength``; nothing happens without an adapter."""
    found: list[Any] = [getattr(one, "scaling", None) for one in model.modules()]
    layers = [one for one in found if isinstance(one, dict)]
    before = [dict(one) for one in layers]
    try:
        for scaling, own in zip(layers, before, strict=True):
            scaling.update({name: value * strength for name, value in own.items()})
        yield
    finally:
        for scaling, own in zip(layers, before, strict=True):
            scaling.update(own)


def no_adapter(form: Form) -> str:
    """Why an attack on the adapter does not apply to a form; empty if it does."""
    return "" if form.adapter else "the form has no separate adapter"
