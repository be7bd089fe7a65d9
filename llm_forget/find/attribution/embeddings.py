"""The word embeddings of a model, trainable for the time of a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_forget.errors import UserError
from llm_forget.model.weights import in_shards


def in_precision(model: nn.Module) -> torch.autocast:
    """Autocast to bf16 for a model with any bf16 weights, even if its word embeddings are in fp32 for the time of a search."""
    device = next(model.parameters()).device
    return torch.autocast(
        device.type, torch.bfloat16, enabled=any(value.dtype == torch.bfloat16 for value in model.parameters())
    )


@contextmanager
def word_embeddings(model: Any) -> Iterator[list[nn.Parameter]]:
    """In this context only the word embeddings need gradients, and they are in fp32. Afterwards all weights are as before.

    Args:
        model: a causal language model on its device, or a ``PeftModel``.

    Yields:
        The embeddings of the input and of the output; one if they are the same.

    Raises:
        UserError: the weights are sharded, or the embeddings are quantised.
    """
    if in_shards(model):
        raise UserError(
            "attribution needs the whole model in each process, and these weights are sharded; load it without FSDP and ZeRO-3"
        )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(end.weight): end.weight for end in ends if end is not None and end.weight.is_floating_point()}
    if not found:
        raise UserError(
            "the model's word embeddings are quantised, so they cannot be unlearned; load it in 16 or 32 bits"
        )
    flags = [(value, value.requires_grad, value.grad) for value in model.parameters()]
    held = [(value, value.data) for value in found.values()]
    try:
        for value, _, _ in flags:
            value.requires_grad_(False)
            value.grad = None
        for value, data in held:
            value.data = data.detach().float().clone()
            value.requires_grad_(True)
        yield list(found.values())
    finally:
        for value, data in held:
            value.data = data
        for value, required, gradient in flags:
            value.requires_grad_(required)
            value.grad = gradient
