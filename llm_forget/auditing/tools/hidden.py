"""Read and change what a decoder block passes on, with hooks that are removed afterwards. Weights are never touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.logprobs import answer_logits
from llm_forget.model.structure import text_decoder
from llm_forget.model.targets import blocks_by_name


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the text decoder, in order.

    Args:
        model: below any data-parallel wrapper; with or without an adapter.
    """
    named = blocks_by_name(model)
    found: dict[int, nn.Module] = {}
    for name, index in named.items():
        found.setdefault(index, model.get_submodule(name))
    return [found[index] for index in sorted(found)]


def block_at(blocks: Sequence[nn.Module], depth: float) -> nn.Module:
    """The block at a share of the depth: of 30 blocks, ``depth`` 0.5 gives the one with number 15."""
    return blocks[min(int(depth * len(blocks)), len(blocks) - 1)]


@contextmanager
def changed(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """In this context, ``change`` is applied to the hidden states (B, T, H) that a block returns."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]).to(output[0].dtype), *output[1:])
        return change(output).to(output.dtype)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """In this context, the list holds the hidden states (B, T, H) that each block returned in the last forward pass."""
    seen: list[Tensor] = [torch.empty(0)] * len(blocks)

    def hook(place: int) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            seen[place] = (output[0] if isinstance(output, tuple) else output).detach()

        return note

    with ExitStack() as stack:
        for place, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(hook(place)).remove)
        yield seen


def states_after(model: nn.Module, batch: dict[str, Tensor], blocks: Sequence[nn.Module]) -> list[Tensor]:
    """The hidden states (B, T, H) after some blocks for a batch, without gradients."""
    with torch.no_grad(), recorded(blocks) as seen:
        answer_logits(model, batch)
    return seen


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last block and the head; ``nn.Identity`` if the decoder has none.

    It is the last of the decoder's own modules outside its blocks that holds one vector as its weight.
    """
    inside = {id(module) for block in decoder_blocks(model) for module in block.modules()}
    found: nn.Module = nn.Identity()
    for module in text_decoder(model).modules():
        weight = getattr(module, "weight", None)
        if id(module) not in inside and isinstance(weight, Tensor) and weight.dim() == 1:
            found = module
    return found
