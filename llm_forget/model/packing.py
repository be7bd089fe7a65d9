"""Packing: run a batch as one sequence without padding, and compute shared prefixes once.

Everything except attention works on each token separately, so the model can run on one sequence of all tokens. Attention is
computed row by row, over the tokens of the row and of the prefix that it shares, or for long rows on a GPU by ``flex.py``. Models
with layers that carry a state along the sequence are not packed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.flex import Flex
from llm_forget.model.head import below_wrapper
from llm_forget.model.packing_trial import TRIAL, why_not
from llm_forget.model.structure import decoder_configs, fits_window, text_config

KERNELS = ("eager", "sdpa")  # attention that takes a mask of any shape
_PREFIX = "llm_forget_packed_"


class _Take(torch.autograd.Function):
    """Select rows of a matrix by index. The gradients of a row that is selected more than once are summed in fp32 or higher."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(values)
        return values.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros((ctx.count, gradient.shape[1]), dtype=sums)
        return total.index_add_(0, index, gradient.to(sums)).to(gradient.dtype), None


def _rows_of(states: Tensor, index: Tensor) -> Tensor:
    """(1, heads, N, D) states of the sequence → (S, heads, Q, D) of its rows."""
    _, heads, count, size = states.shape
    flat = states[0].transpose(0, 1).reshape(count, heads * size)
    taken: Tensor = _Take.apply(flat, index.flatten())  # type: ignore[no-untyped-call]
    return taken.view(*index.shape, heads, size).transpose(1, 2)


def _attend(
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flex: Flex | None = None,
    packed: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of rows if the batch is packed, otherwise the plain kernel. States: (B, heads, T, D)."""
    if packed is None:
        return kernel(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    if TRIAL in packed:
        _refuse_bias(query.shape[2], [attention_mask, *more.values()])
    by_row = partial(_by_row, partial(kernel, module), packed, more)
    out = None if flex is None or TRIAL in packed else flex.attend(query, key, value, packed, more, by_row)
    return by_row(query, key, value) if out is None else out, None


def _by_row(
    kernel: Callable[..., Any], packed: dict[str, Any], more: dict[str, Any], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention row by row over (1, heads, N, D) states, by gathering the rows → (1, N, heads, D)."""
    mask = _mask_for(packed, query.dtype)
    rows = [_rows_of(query, packed["queries"]), *(_rows_of(one, packed["keys"]) for one in (key, value))]
    out, _ = kernel(*rows, mask, **{**more, "is_causal": False})
    taken: Tensor = _Take.apply(out.flatten(2).flatten(0, 1), packed["back"])  # type: ignore[no-untyped-call]
    return taken.view(1, -1, *out.shape[2:])


def _refuse_bias(tokens: int, given: Sequence[Any]) -> None:
    """Refuse a mask or bias of the model's own, which packed attention does not apply. Our own mask has one element.

    Raises:
        ValueError: a float mask or bias over the ``tokens`` tokens of the sequence is given.
    """
    tables = [one for one in given if isinstance(one, Tensor) and one.is_floating_point() and one.dim() > 1]
    if any(tokens in one.shape for one in tables):
        raise ValueError("attention has a bias of its own")


def _mask_for(packed: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The additive mask, computed once and cached in the layout for all blocks."""
    name = f"mask {dtype}"
    if name not in packed:
        packed[name] = additive_mask(packed["mask"], dtype)
    mask: Tensor = packed[name]
    return mask


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive attention mask: 0 where ``allowed`` is True, the lowest finite number elsewhere."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def _eager(module: nn.Module, *states: Any, is_causal: bool | None = None, **more: Any) -> tuple[Tensor, Tensor | None]:
    """The model's own eager attention."""
    found: Any = sys.modules[type(module).__module__].eager_attention_forward
    return found(module, *states, **more)  # type: ignore[no-any-return]


def _register(name: str, flex: Flex) -> str:
    """Register packed attention over a kernel with transformers, and return its registered name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kernel = _eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    # a model's own eager attention may compute anything
    AttentionInterface.register(_PREFIX + name, partial(_attend, kernel, flex=flex if name == "sdpa" else None))
    AttentionMaskInterface.register(_PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return _PREFIX + name


def packs(model: nn.Module, tokens: int) -> bool:
    """Whether ``packed_attention`` is active for the model and rows of ``tokens`` tokens fit its attention window."""
    config = below_wrapper(model).config
    chosen = getattr(text_config(config), "_attn_implementation", None)
    return isinstance(chosen, str) and chosen.startswith(_PREFIX) and fits_window(config, tokens)


@contextmanager
def packed_attention(
    model: nn.Module, *, wanted: bool = True, say: Callable[[str], None] = lambda _: None
) -> Iterator[bool]:
    """In this context the model's batches are packed in forward and backward. Yields whether they are.

    Batches stay padded if the attention does not accept arbitrary masks, or if a trial gives different logits for packed rows.
    This happens with recurrent layers, and with models that count positions along the sequence.

    Args:
        model: wrapped or not, on its device.
        wanted: do nothing if this is False.
        say: called with the reason if batches stay padded.
    """
    if not wanted:
        yield False
        return
    configs = decoder_configs(below_wrapper(model))
    chosen = [config._attn_implementation for config in configs]
    if set(chosen) - set(KERNELS):
        named = ", ".join(sorted(map(str, set(chosen))))
        say(f"batches are padded, not packed: attention is {named}; only {' and '.join(KERNELS)} accept any mask")
        yield False
        return

    def put(kernels: Sequence[str]) -> None:
        for config, kernel in zip(configs, kernels, strict=True):
            config._attn_implementation = kernel

    flex = Flex(say)
    put([_register(kernel, flex) for kernel in chosen])
    try:
        reason = why_not(model)
        if reason is not None:
            put(chosen)
            say(f"batches are padded, not packed: {reason}")
        yield reason is None
    finally:
        put(chosen)
