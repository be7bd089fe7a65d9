"""The layout of a batch as one sequence without padding, in which shared prefixes (a system turn, a question) stand once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WORTH = 0.9  # pack only if at most this share of the tokens remains, because gathering rows for attention has a cost


@dataclass(frozen=True)
class Packed:
    """B rows packed into one sequence of N tokens.

    Attributes:
        tokens: (1, N) each token once, rows in lexicographic order.
        positions: (1, N) the position of each token in its row.
        place: (B, T) the index in the sequence of each token of each row; 0 in the padding.
        layout: index tensors for attention over the S rows that have tokens outside their shared prefix. ``queries`` (S, Q)
            indexes these own tokens and ``keys`` (S, K) all tokens of the row; ``mask`` (S, 1, Q, K) is True if a query may
            attend to a key; ``back`` (N,) is the index of each token's result among the S · Q results. ``until`` (N,) is the
            index after the last token that may attend to a token: these are the tokens from itself on, without a gap.
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
    until = torch.zeros(len(back), dtype=torch.long)
    for row in shares:  # in the order of the sequence, so the last row that goes on from a token has the last word
        until[paths[row]] = paths[row][-1] + 1
    return {"queries": queries, "keys": keys, "mask": mask[:, None], "back": back, "until": until}


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the common prefix of two rows, in tokens."""
    return next(
        (place for place, (one, two) in enumerate(zip(left, right, strict=False)) if one != two),
        min(len(left), len(right)),
    )


def _padded(rows: list[list[int]], width: int = 0) -> Tensor:
    width = max([width, *(len(row) for row in rows)])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


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
