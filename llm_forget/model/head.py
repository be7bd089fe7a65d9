"""Run the language-model head on answer positions only, in chunks if the logits would be large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Most bytes of fp32 logits in memory; larger logits are computed in chunks. Backward needs about three times as much.
CHUNK_BYTES = 1 << 28
# The same for a frozen head on a CPU, where chunks have no extra cost and small ones fit into the caches.
FROZEN_CPU_CHUNK_BYTES = 1 << 25
# Config fields of models that change the logits after the head, so that the head's output is not the softmax input.
_CHANGES_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def output_head(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits, below DDP and PEFT wrappers."""
    inner = below_wrapper(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(inner).__name__} has no output embeddings; a causal language model is needed")
    return head  # type: ignore[no-any-return]


def below_wrapper(model: nn.Module) -> Any:
    """The model without its data-parallel wrapper. Adapters are kept."""
    return model.module if hasattr(model, "module") and not hasattr(model, "get_output_embeddings") else model


@contextmanager
def head_reads_only(model: nn.Module, positions: Tensor | tuple[int, Tensor]) -> Iterator[None]:
    """In this context the head receives only the hidden states at ``positions``; its output is (N, V), not (B, T, V).

    It uses a hook instead of calling the decoder directly, so that the forward pass still goes through the outermost wrapper
    (DDP, FSDP, autocast).

    Args:
        model: wrapped or not.
        positions: (B, T) bool; or a row index and positions (N,) in that row.
    """

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions], *args[1:])

    handle = output_head(model).register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def chunk_rows(model: nn.Module, rows: int, *, on_cpu: bool | None = None) -> int | None:
    """The number of positions per chunk of the head.

    Args:
        model: wrapped or not.
        rows: the number of positions that the head reads.
        on_cpu: whether it runs on a CPU; by default read from its weights.

    Returns:
        The size of a chunk, or None if all positions fit or the model changes its logits after the head.
    """
    config = below_wrapper(model).config
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _CHANGES_LOGITS):
        return None
    if on_cpu is None:
        on_cpu = next(model.parameters()).device.type == "cpu"
    most = min(CHUNK_BYTES, FROZEN_CPU_CHUNK_BYTES) if on_cpu and _is_frozen(output_head(model)) else CHUNK_BYTES
    fit = max(1, most // (4 * int(config.vocab_size)))
    return None if rows <= fit else -(-rows // -(-rows // fit))  # chunks of equal size


def _is_frozen(head: nn.Module) -> bool:
    return not any(value.requires_grad for value in head.parameters())


class _FrozenHeadLogps(torch.autograd.Function):
    """The log-probs of a chunk. The forward pass also computes their gradient for the hidden states, and frees the logits.

    Each log-prob depends only on its own row, so for any loss the gradient is this row gradient times a scalar.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logps: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            scores = logps(leaf)
            ctx.save_for_backward(*torch.autograd.grad(scores.sum(), leaf))
        return scores.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * slope).to(slope.dtype), None


@contextmanager
def head_gives_logps(model: nn.Module, targets: Tensor, size: int) -> Iterator[None]:
    """In this context the head returns the targets' log-probs, (N, 1) in fp32, computed ``size`` rows at a time.

    The logits of a chunk are freed before the next chunk. If the head is frozen, the gradient is computed in the forward pass.
    If it is trained, backward recomputes the logits.

    Args:
        model: wrapped or not; its head must already read only the N answer positions.
        targets: (N,) token ids.
        size: rows per chunk.
    """
    head: Any = output_head(model)
    logits_of = head.forward

    def logps(hidden: Tensor, wanted: Tensor) -> Tensor:
        logits = logits_of(hidden).float()
        scores: Tensor = logits.gather(-1, wanted[:, None]) - logits.logsumexp(-1, keepdim=True)
        return scores

    def forward(hidden: Tensor) -> Tensor:
        parts = []
        at_once = _is_frozen(head)
        for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            if torch.is_grad_enabled() and hidden.requires_grad and at_once:
                parts.append(_FrozenHeadLogps.apply(rows, partial(logps, wanted=wanted)))  # type: ignore[no-untyped-call]
            elif torch.is_grad_enabled():
                parts.append(checkpoint(logps, rows, wanted, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(logps(rows, wanted))
        return torch.cat(parts)

    replaced = "forward" in vars(head)
    head.forward = forward
    try:
        yield
    finally:
        if replaced:
            head.forward = logits_of
        else:
            del head.forward
