"""Mixtures of experts: keep the router's own loss out of training and measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from llm_forget.model.head import below_wrapper
from llm_forget.model.structure import text_config

# TRL sets these when its trainer is made, and a checkpoint may bring them.
_FIELDS = ("output_router_logits", "router_aux_loss_coef")


@contextmanager
def without_router_loss(model: nn.Module) -> Iterator[None]:
    """In this context a mixture of experts returns no router logits, so it does not compute its load-balancing loss.

    That loss is not part of any objective here, and it does not accept the mask of packed rows. Afterwards the config is as
    before, also if somebody else changed these fields in between.

    Args:
        model: wrapped or not; a model without experts stays as it is.
    """
    config = getattr(below_wrapper(model), "config", None)
    if config is None:  # a plain module
        yield
        return
    held = [
        (part, {name: getattr(part, name) for name in _FIELDS if hasattr(part, name)})
        for part in (config, text_config(config))
    ]
    for part, fields in held:
        if "output_router_logits" in fields:
            part.output_router_logits = False
    try:
        yield
    finally:
        for part, fields in held:
            for name, value in fields.items():
                setattr(part, name, value)
