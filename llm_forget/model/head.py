"""The language-model head on answer positions: found below wrappers, fed with those alone, and worked off in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# fp32 logits that may exist at once before they are worked off in chunks; what backward needs of them is about three times this
CHUNK_BYTES = 1 << 28
# The same on a CPU under a frozen head, where chunks cost no work and small ones stay near the caches.
FROZEN_CPU_CHUNK_BYTES = 1 << 25
# Models that change the logits after their head: what the head gives is then not what a softmax is taken of.
_CHANGES_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def output_head(model: nn.Module) -> nn.Module:
    """The module that turns hidden states into logits, found below DDP and PEFT wrappers."""
    inner = below_wrapper(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(inner).__name__} has no output embeddings; a causal language model is needed")
    return head  # type: ignore[no-any-return]


def below_wrapper(model: nn.Module) -> Any:
    """The model itself, below a data-parallel wrapper; an adapter stays on it."""
    return model.module if hasattr(model, "module") and not hasattr(model, "get_output_embeddings") else model


@contextmanager
def head_reads_only(model: nn.Module, positions: Tensor | tuple[int, Tensor]) -> Iterator[None]:
    """Inside, the head receives only the hidden states at ``positions``: its output is (N, V), not (B, T, V).

    A hook rather than a call of the decoder by hand: the forward still enters through the outermost wrapper, so that DDP,
    FSDP and autocast see it.

    Args:
        model: wrapped or not.
        positions: (B, T) True where it reads; or a row, and its places (N,).
    """

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions], *args[1:])

    handle = output_head(model).register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def chunk_rows(model: nn.Module, rows: int, *, on_cpu: bool | None = None) -> int | None:
    """So many positions go through the head at once; None where all fit, or where the model changes its logits afterwards.

    Args:
        model: wrapped or not.
        rows: positions that the head reads.
        on_cpu: whether it runs on one; by default where its weights are.
    """
    config = below_wrapper(model).config
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _CHANGES_LOGITS):
        return None
    if on_cpu is None:
        on_cpu = next(model.parameters()).device.type == "cpu"
    most = min(CHUNK_BYTES, FROZEN_CPU_CHUNK_BYTES) if on_cpu and _is_frozen(output_head(model)) else CHUNK_BYTES
    fit = max(1, most // (4 * int(config.vocab_size)))
    return None if rows <= fit else -(-rows // -(-rows // fit))  # chunks of like size


def _is_frozen(head: nn.Module) -> bool:
    return not any(value.requires_grad for value in head.parameters())


class _FrozenHeadLogps(torch.autograd.Function):
    """Log-probs of a chunk, and at once their slope along its hidden states; the logits are gone before the next chunk.

    Each log-prob depends on its own row alone, so whatever the loss, the gradient is the row's slope times one number.
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
    """Inside, the head's output is not logits but the targets' log-probs, (N, 1) in fp32, worked out ``size`` rows at a time.

    In training the logits of a chunk are dropped after it, so that those of the whole batch never exist at once. Under a
    frozen head the gradient is worked out before that; where the head is trained they are computed again for it.

    Args:
        model: wrapped or not; its head must already read the N answer positions only.
        targets: (N,) token ids.
        size: rows of a chunk.
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
