"""Packing: run a batch as one sequence without padding, and compute shared prefixes (a system turn, a question) once.

Everything except attention works on each token separately, so the model can run on one sequence of all tokens. Attention is
computed row by row, over the tokens of the row and of the prefix that it shares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.head import below_wrapper
from llm_forget.model.weights import autocast_like

KERNELS = ("eager", "sdpa")  # attention that takes a mask of any shape
_PREFIX = "llm_forget_packed_"
_WORTH = 0.9  # pack only if at most this share of the tokens remains, because gathering rows for attention has a cost
# Largest allowed difference between packed and padded logits at any position, in standard deviations of the logits. It is well
# above rounding errors and well below the effect of wrong attention.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 0.25


@dataclass(frozen=True)
class Packed:
    """B rows packed into one sequence of N tokens.

    Attributes:
        tokens: (1, N) each token once, rows in lexicographic order.
        positions: (1, N) the position of each token in its row.
        place: (B, T) the index in the sequence of each token of each row; 0 in the padding.
        layout: index tensors for attention over the S rows that have tokens outside their shared prefix. ``queries`` (S, Q)
            indexes these own tokens and ``keys`` (S, K) all tokens of the row; ``mask`` (S, 1, Q, K) is True if a query may
            attend to a key; ``back`` (N,) is the index of each token's result among the S · Q results.
    """

    tokens: Tensor
    positions: Tensor
    place: Tensor
    layout: dict[str, Tensor]


def pack(input_ids: Tensor, attention_mask: Tensor, worth: float = _WORTH) -> Packed | None:
    """Pack a right-padded batch into one sequence.

    Args:
        input_ids: (B, T) tokens.
        attention_mask: (B, T) 1 for tokens, 0 for padding.
        worth: the largest share of the B · T tokens that may remain after packing.

    Returns:
        The packed batch, or None if more tokens remain.
    """
    lengths = attention_mask.sum(-1).tolist()
    rows = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
    tokens, positions, paths, shares = _lay_out(rows)
    if len(tokens) > worth * input_ids.numel():
        return None
    device = input_ids.device
    return Packed(
        torch.tensor([tokens], device=device),
        torch.tensor([positions], device=device),
        _padded(paths, input_ids.shape[1]).to(device),
        {name: value.to(device) for name, value in _for_attention(paths, shares).items()},
    )


def _lay_out(rows: list[list[int]]) -> tuple[list[int], list[int], list[list[int]], dict[int, int]]:
    """Tokens, positions, each row's indices into the sequence, and the shared prefix length of rows with tokens of their own."""
    tokens: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = [[]] * len(rows)
    shares: dict[int, int] = {}
    before: int | None = None
    # In lexicographic order, the previous row shares the longest prefix among all earlier rows.
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        shared = 0 if before is None else common_prefix(rows[before], rows[row])
        path = [] if before is None else paths[before][:shared]
        new = range(shared, len(rows[row]))
        paths[row] = path + [len(tokens) + place - shared for place in new]
        tokens += rows[row][shared:]
        positions += new
        if new:
            shares[row] = shared
        before = row
    return tokens, positions, paths, shares


def _for_attention(paths: list[list[int]], shares: dict[int, int]) -> dict[str, Tensor]:
    """The ``layout`` of ``Packed``."""
    queries = _padded([paths[row][shared:] for row, shared in shares.items()])
    keys = _padded([paths[row] for row in shares])
    first = torch.tensor(list(shares.values()))[:, None, None]
    sizes = torch.tensor([len(paths[row]) for row in shares])[:, None, None]
    query, key = torch.arange(queries.shape[1])[:, None], torch.arange(keys.shape[1])
    mask = (key <= query + first) & (key < sizes)
    own = query[:, 0] < (sizes - first)[:, 0]
    # own tokens are stored in this order, so their results come out in the order of the sequence
    back = own.flatten().nonzero().squeeze(-1)
    return {"queries": queries, "keys": keys, "mask": mask[:, None], "back": back}


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the common prefix of two rows, in tokens."""
    return next(
        (place for place, (one, two) in enumerate(zip(left, right, strict=False)) if one != two),
        min(len(left), len(right)),
    )


def _padded(rows: list[list[int]], width: int = 0) -> Tensor:
    width = max([width, *(len(row) for row in rows)])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


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
    packed: dict[str, Tensor] | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention row by row if the batch is packed, otherwise the plain kernel. States: (B, heads, T, D)."""
    if packed is None:
        return kernel(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    mask = _mask_for(packed, query.dtype)
    rows = [_rows_of(query, packed["queries"]), *(_rows_of(one, packed["keys"]) for one in (key, value))]
    out, _ = kernel(module, *rows, mask, **{**more, "is_causal": False})
    taken: Tensor = _Take.apply(out.flatten(2).flatten(0, 1), packed["back"])  # type: ignore[no-untyped-call]
    return taken.view(1, -1, *out.shape[2:]), None


def _mask_for(packed: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The additive mask, computed once and cached in the layout for all blocks."""
    name = f"mask {dtype}"
    if name not in packed:
        packed[name] = additive_mask(packed["mask"], dtype)
    return packed[name]


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive attention mask: 0 where ``allowed`` is True, the lowest finite number elsewhere."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def _eager(module: nn.Module, *states: Any, is_causal: bool | None = None, **more: Any) -> tuple[Tensor, Tensor | None]:
    """The model's own eager attention."""
    found: Any = sys.modules[type(module).__module__].eager_attention_forward
    return found(module, *states, **more)  # type: ignore[no-any-return]


def _register(name: str) -> str:
    """Register packed attention over a kernel with transformers, and return its registered name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kernel = _eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    AttentionInterface.register(_PREFIX + name, partial(_attend, kernel))
    AttentionMaskInterface.register(_PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return _PREFIX + name


def packs(model: nn.Module, tokens: int) -> bool:
    """Whether ``packed_attention`` is active for the model and rows of ``tokens`` tokens fit its attention window."""
    config = below_wrapper(model).config
    chosen = getattr(config, "_attn_implementation", None)
    if not (isinstance(chosen, str) and chosen.startswith(_PREFIX)):
        return False
    return fits_window(config, tokens)


def fits_window(config: Any, tokens: int) -> bool:
    """Whether every layer attends to all ``tokens`` tokens, that is, no sliding window is shorter."""
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(tokens <= window for window in windows if window)  # None or 0: unlimited


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
    config = below_wrapper(model).config
    chosen = getattr(config, "_attn_implementation", None)
    if not wanted:
        yield False
        return
    if chosen not in KERNELS:
        say(f"batches are padded, not packed: attention is {chosen}; only {' and '.join(KERNELS)} accept any mask")
        yield False
        return
    config._attn_implementation = _register(chosen)
    try:
        reason = _why_not(model)
        if reason is not None:
            config._attn_implementation = chosen
            say(f"batches are padded, not packed: {reason}")
        yield reason is None
    finally:
        config._attn_implementation = chosen


def _why_not(model: nn.Module) -> str | None:
    """Compare packed and padded logits on three short rows, two of which share a prefix; None if they agree."""
    weight = next(model.parameters())
    most = int(below_wrapper(model).config.get_text_config().vocab_size)
    first = [(7 * place) % most for place in range(24)]
    rows = [first, [*first[:12], *((11 * place + 1) % most for place in range(9))], first[5:12]]
    ids, mask = torch.zeros(3, 24, dtype=torch.long), torch.zeros(3, 24, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    ids, mask = ids.to(weight.device), mask.to(weight.device)
    line = pack(ids, mask)
    if line is None:
        return "the trial rows share no prefix"
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast_like(model):
            padded = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()].float()
            packed = model(**model_inputs(line), use_cache=False).logits[0, line.place[mask.bool()]].float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise any error for unknown arguments
        return f"the model does not support it ({type(error).__name__})"
    finally:
        model.train(training)
    apart = float(((packed - padded).abs().amax(-1) / padded.std(-1).clamp(min=1e-6)).max())
    tolerance = _TOLERANCE.get(weight.dtype, _TOLERANCE_HALF)
    return None if apart <= tolerance else f"the model gives different logits for packed rows (difference {apart:.2g})"


def model_inputs(line: Packed) -> dict[str, Any]:
    """The model's inputs for a packed batch."""
    # transformers passes a 4D mask on unchanged, and packed attention ignores it
    unused = line.tokens.new_zeros((1, 1, 1, 1), dtype=torch.bool)
    return {
        "input_ids": line.tokens,
        "position_ids": line.positions,
        "attention_mask": unused,
        "packed": line.layout,
    }
