"""Run the language-model head on answer positions only, in chunks if the logits would be large.

Some models change the head's output: they cap, scale or mask it. Names in a config do not tell, so each model is tried once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from llm_forget.model.structure import vocabulary_of

# Most bytes of fp32 logits in memory; larger logits are computed in chunks. Backward needs about three times as much.
CHUNK_BYTES = 1 << 28
# The same for a frozen head on a CPU, where chunks have no extra cost and small ones fit into the caches.
FROZEN_CPU_CHUNK_BYTES = 1 << 25
# Values of the trial: far enough from 0 that a cap changes them, and no two alike.
_TRIAL_RANGE = 60.0
_TRIAL_TOKENS = 4
_FUSED = "_fused_head"  # attribute of the model below its wrapper


class HeadUse(Enum):
    """What a model allows with its head.

    Attributes:
        WHOLE: it must run on all positions, because the model reads its output as a whole or does not call it once.
        POSITIONS: it may run on some positions; the model then changes each position's logits separately (a cap, a scale).
        CHUNKS: its output is the logits, so log-probs can be computed from it in chunks.
    """

    WHOLE = "whole"
    POSITIONS = "positions"
    CHUNKS = "chunks"


_USES: WeakKeyDictionary[nn.Module, HeadUse] = WeakKeyDictionary()


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


def head_use(model: nn.Module) -> HeadUse:
    """What the model allows with its head, tried once per model in three passes over a few tokens.

    All processes must make the first call together, because the passes gather sharded weights. The trial replaces the head's
    output by known numbers and compares them with the logits that the model returns. So it does not depend on weights or
    rounding. Fake tensors have no numbers; there, the logits must be the head's output itself.

    Args:
        model: wrapped or not.
    """
    inner = below_wrapper(model)
    if inner not in _USES:
        _USES[inner] = _try_head(inner)
    return _USES[inner]


@torch.no_grad()
def _try_head(model: Any) -> HeadUse:
    device = next(model.parameters()).device
    ids = torch.ones(1, _TRIAL_TOKENS, dtype=torch.long, device=device)
    chosen = torch.tensor([1, 3], device=device)
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        shape, dtype = _head_output(model, ids)
        count = _TRIAL_TOKENS * shape[-1]
        known = torch.linspace(-_TRIAL_RANGE, _TRIAL_RANGE, count, device=device).view(1, _TRIAL_TOKENS, -1)
        if isinstance(known, FakeTensor):
            version, whole = known._version, _logits_for(model, ids, known)
            same = whole.untyped_storage()._cdata == known.untyped_storage()._cdata and known._version == version
            return HeadUse.CHUNKS if same else HeadUse.POSITIONS
        known = known.to(dtype)
        whole = _logits_for(model, ids, known.clone())
        with head_reads_only(model, (0, chosen)):
            part = _logits_for(model, ids, known[0, chosen])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's code may raise any error here; the pass over the real rows reports it
        return HeadUse.WHOLE
    finally:
        for module, training in before:
            module.training = training
    if whole.shape[:2] != known.shape[:2] or not torch.equal(part, whole[0, chosen]):
        return HeadUse.WHOLE
    return HeadUse.CHUNKS if torch.equal(whole, known.to(whole.dtype)) else HeadUse.POSITIONS


def _head_output(model: Any, ids: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the head returns for ``ids``.

    Raises:
        ValueError: the head is not called exactly once, with the hidden states of all positions.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args[0].shape[:-1] == ids.shape:
            seen.append(output)

    handle = output_head(model).register_forward_hook(note)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].shape[:-1] != ids.shape:
        raise ValueError(f"the head is called {len(seen)} times")
    return tuple(seen[0].shape), seen[0].dtype


def _logits_for(model: Any, ids: Tensor, output: Tensor) -> Tensor:
    """The logits that the model returns if its head returns ``output``."""
    handle = output_head(model).register_forward_hook(lambda *_: output)
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        handle.remove()
    return logits


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
        The size of a chunk, or None if all positions fit or the model changes its logits after the head. In training, a fused
        kernel makes its own chunks and gets all positions.
    """
    if _fused(model) is not None and torch.is_grad_enabled():
        return max(rows, 1)
    if head_use(model) is not HeadUse.CHUNKS:
        return None
    if on_cpu is None:
        on_cpu = next(model.parameters()).device.type == "cpu"
    most = min(CHUNK_BYTES, FROZEN_CPU_CHUNK_BYTES) if on_cpu and _is_frozen(output_head(model)) else CHUNK_BYTES
    fit = max(1, most // (4 * vocabulary_of(below_wrapper(model).config)))
    return None if rows <= fit else -(-rows // -(-rows // fit))  # chunks of equal size


def hold_fused(model: nn.Module, fused: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None) -> None:
    """Give the model a kernel that maps hidden states and tokens to log-probs and slopes; None to take it away."""
    setattr(below_wrapper(model), _FUSED, fused)


def _fused(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    found: Callable[..., tuple[Tensor, Tensor]] | None = getattr(below_wrapper(model), _FUSED, None)
    return found


def _is_frozen(head: nn.Module) -> bool:
    return not any(value.requires_grad for value in head.parameters())


def chosen_logps(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, wanted: Tensor) -> Tensor:
    """The log-probs (N, 1) in fp32 of tokens (N,) after hidden states (N, H)."""
    logits = logits_of(hidden).float()
    return logits.gather(-1, wanted[:, None]) - logits.logsumexp(-1, keepdim=True)


def row_slope(hidden: Tensor, logps: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The log-probs of a chunk (N, 1) and the gradient of each for its own row of hidden states (N, H)."""
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        scores = logps(leaf)
        (slope,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), slope


class _FrozenHeadLogps(torch.autograd.Function):
    """The log-probs of a chunk. The forward pass also computes their gradient for the hidden states, and frees the logits.

    Each log-prob depends only on its own row, so for any loss the gradient is this row gradient times a scalar.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, slope_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        scores, slope = slope_of(hidden)
        ctx.save_for_backward(slope)
        return scores

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
    logits_of, fused = head.forward, _fused(model)

    logps = partial(chosen_logps, logits_of)

    def forward(hidden: Tensor) -> Tensor:
        parts = []
        at_once = _is_frozen(head)
        for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            if fused is not None and torch.is_grad_enabled() and hidden.requires_grad:
                parts.append(_FrozenHeadLogps.apply(rows, partial(fused, wanted=wanted)))  # type: ignore[no-untyped-call]
            elif torch.is_grad_enabled() and hidden.requires_grad and at_once:
                slope_of = partial(row_slope, logps=partial(logps, wanted=wanted))
                parts.append(_FrozenHeadLogps.apply(rows, slope_of))  # type: ignore[no-untyped-call]
            elif torch.is_grad_enabled():
                parts.append(checkpoint(logps, rows, wanted, use_reentrant=False))  # with the same dropout masks
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
