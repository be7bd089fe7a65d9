"""A batch without padding: rows laid end to end, and what rows begin with alike (a system turn, a question) computed once.

Everything but attention looks at each token by itself, so a model can be run on one line of tokens; attention alone has to
know which row a token belongs to. It is done row by row, over the row's own tokens and those that it shares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_PREFIX = "llm_forget_packed_"
_KERNELS = ("eager", "sdpa")  # attention that takes a mask of any shape
# Hidden states of the two ways may lie so far apart, as a share of their size, before a model counts as one that reads its
# rows in another way: well above rounding, well below what wrongly attended tokens do.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 0.1


@dataclass(frozen=True)
class Packed:
    """B rows as one line of N tokens.

    Attributes:
        tokens: (1, N) each token once, in the order of the rows sorted by their tokens.
        positions: (1, N) its place in its row.
        place: (B, T) where each token of each row lies in the line; 0 beyond a row's end.
        layout: what attention needs, for S rows that have a token of their own: ``queries`` (S, Q) their own tokens and ``keys``
            (S, K) all their tokens, as places in the line; ``mask`` (S, 1, Q, K) True where a query may see a key; ``back``
            (N,) where each token's result lies among the S · Q.
    """

    tokens: Tensor
    positions: Tensor
    place: Tensor
    layout: dict[str, Tensor]


def pack(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Lay a right-padded batch out in a line.

    Args:
        input_ids: (B, T) tokens.
        attention_mask: (B, T) 1 at the rows' own tokens.
    """
    lengths = attention_mask.sum(-1).tolist()
    rows = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
    tokens: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = [[]] * len(rows)
    own: list[tuple[int, int]] = []  # of the rows with tokens of their own: which, and how many it shares
    before: int | None = None
    # In lexicographic order no earlier row shares more with a row than the one just before it.
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        shared = 0 if before is None else _common(rows[before], rows[row])
        path = [] if before is None else paths[before][:shared]
        new = range(shared, len(rows[row]))
        paths[row] = path + [len(tokens) + place - shared for place in new]
        tokens += rows[row][shared:]
        positions += new
        if new:
            own.append((row, shared))
        before = row
    place = _padded(paths, input_ids.shape[1])
    queries = _padded([paths[row][shared:] for row, shared in own])
    keys = _padded([paths[row] for row, _ in own])
    shares = torch.tensor([shared for _, shared in own])[:, None, None]
    sizes = torch.tensor([len(paths[row]) for row, _ in own])[:, None, None]
    query, key = torch.arange(queries.shape[1])[:, None], torch.arange(keys.shape[1])
    mask = (key <= query + shares) & (key < sizes)
    back = [
        number * queries.shape[1] + query
        for number, (row, shared) in enumerate(own)
        for query in range(len(paths[row]) - shared)
    ]
    device = input_ids.device
    layout = {"queries": queries, "keys": keys, "mask": mask[:, None], "back": torch.tensor(back)}
    return Packed(
        torch.tensor([tokens], device=device),
        torch.tensor([positions], device=device),
        place.to(device),
        {name: value.to(device) for name, value in layout.items()},
    )


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next(
        (place for place, (one, two) in enumerate(zip(left, right, strict=False)) if one != two),
        min(len(left), len(right)),
    )


def _padded(rows: list[list[int]], width: int = 0) -> Tensor:
    width = max(width, *(len(row) for row in rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


class _Take(torch.autograd.Function):
    """Rows of a matrix by index; where a row is taken more than once, its gradient is summed in fp32, whatever its type."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(values)
        return values.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = gradient.new_zeros((ctx.count, gradient.shape[1]), dtype=torch.float32)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def _rows_of(states: Tensor, index: Tensor) -> Tensor:
    """(1, heads, N, D) states of a line → (S, heads, Q, D) of its rows."""
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
    """Attention row by row over a line, or as ever where the batch is not packed. States: (B, heads, T, D)."""
    if packed is None:
        return kernel(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    allowed = packed["mask"]
    mask = torch.zeros_like(allowed, dtype=query.dtype).masked_fill_(~allowed, torch.finfo(query.dtype).min)
    rows = [_rows_of(query, packed["queries"]), *(_rows_of(one, packed["keys"]) for one in (key, value))]
    out, _ = kernel(module, *rows, mask, **{**more, "is_causal": False})
    taken: Tensor = _Take.apply(out.flatten(2).flatten(0, 1), packed["back"])  # type: ignore[no-untyped-call]
    return taken.view(1, -1, *out.shape[2:]), None


def _eager(module: nn.Module, *states: Any, is_causal: bool | None = None, **more: Any) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, written out."""
    found: Any = sys.modules[type(module).__module__].eager_attention_forward
    return found(module, *states, **more)  # type: ignore[no-any-return]


def _register(name: str) -> str:
    """Make attention that packs known to transformers, over the kernel of this name; returns what it is called there."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kernel = _eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    AttentionInterface.register(_PREFIX + name, partial(_attend, kernel))
    AttentionMaskInterface.register(_PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return _PREFIX + name


def _config(model: nn.Module) -> Any:
    inner: Any = model.module if hasattr(model, "module") and not hasattr(model, "get_output_embeddings") else model
    return inner.config


def packs(model: nn.Module, tokens: int) -> bool:
    """Whether the model is inside ``packed_attention``, and rows of so many tokens fit into its window."""
    config = _config(model)
    chosen = getattr(config, "_attn_implementation", None)
    if not (isinstance(chosen, str) and chosen.startswith(_PREFIX)):
        return False
    window = getattr(config.get_text_config(), "sliding_window", None)
    return window is None or tokens <= window


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[bool]:
    """Inside, batches of this model are packed, forward and backward; gives whether they are.

    A model stays as it is whose attention takes no mask of any shape, or that turns out not to give packed rows what it
    gives padded ones: recurrent layers, positions that are counted along the line.
    """
    config = _config(model)
    chosen = getattr(config, "_attn_implementation", None)
    if chosen not in _KERNELS:
        yield False
        return
    config._attn_implementation = _register(chosen)
    try:
        reads = _reads_lines(model)
        if not reads:
            config._attn_implementation = chosen
        yield reads
    finally:
        config._attn_implementation = chosen


def _reads_lines(model: nn.Module) -> bool:
    """Try it: three short rows, two of which begin alike, packed and padded."""
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 0], [7, 8, 0, 0, 0]], device=device)
    ids = ids.clamp(max=int(_config(model).get_text_config().vocab_size) - 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], device=device)
    line = pack(ids, mask)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            padded = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
            packed = model(**model_inputs(line), use_cache=False).logits[0, line.place[mask.bool()]]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError):
        return False  # it does not hand further arguments down to attention, or refuses positions
    finally:
        model.train(training)
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, _TOLERANCE_HALF)
    apart = (packed - padded).float().abs().mean() / padded.float().std().clamp(min=1e-6)
    return bool(apart <= tolerance)


def model_inputs(line: Packed) -> dict[str, Any]:
    """What a model takes instead of a padded batch."""
    # a mask of four dimensions is handed down as it is: none is made, and attention does not look at it
    unused = line.tokens.new_zeros((1, 1, 1, 1), dtype=torch.bool)
    return {
        "input_ids": line.tokens,
        "position_ids": line.positions,
        "attention_mask": unused,
        "packed": line.layout,
    }
