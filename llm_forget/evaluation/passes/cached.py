"""Score rows in pieces. Each piece is one forward pass, or is read from the cache.

A piece is a batch of rows of similar length, or a batch of packs of rows that share prefixes (``shared_prefix``). The pieces
depend only on the rows and ``batch_tokens``. So the same rows give the same numbers, even in bf16, with or without a cache
and for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.passes.cache import Cache, all_agree
from llm_forget.evaluation.passes.score import score_encoded
from llm_forget.evaluation.passes.shared_prefix import (
    Pack,
    fits_trees,
    pack_rows,
    reads_trees,
    saved_share,
    score_packs,
)
from llm_forget.evaluation.tokens import Floats, TokenScores
from llm_forget.model.batching import answer_batches, answer_offsets, length_batches, over_batches, place_rows
from llm_forget.model.head import below_wrapper

# Lowest share of saved tokens for which packing is faster; below it, the cost of the tree's mask exceeds the savings.
_WORTH_PACKING = 0.1
# Model → whether it supports trees, as found by ``reads_trees``.
_READERS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Piece:
    """One forward pass.

    Attributes:
        rows: the rows that it scores.
        packs: the packs of these rows; None for a batch of separate rows.
    """

    rows: tuple[int, ...]
    packs: tuple[Pack, ...] | None = None


def score_rows(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
    cache: Cache | None = None,
    shared_prefix: bool = True,
) -> TokenScores:
    """Score rows like ``score_encoded``, but compute shared prefixes once and use a cache.

    Args:
        model: a causal language model, wrapped or not, on its device.
        rows: the encoded answers; may be empty.
        pad_token_id: any id of the vocabulary.
        batch_tokens: tokens per forward pass, including padding.
        progress: called with the number of finished rows.
        accelerator: an ``accelerate.Accelerator``; its processes share the pieces that are not cached.
        cache: cache for finished pieces, or None.
        shared_prefix: compute shared prefixes once if that saves enough tokens and the model supports it.

    Returns:
        The scores in the order of ``rows``.
    """
    offsets = answer_offsets(rows)
    found = np.zeros((4, int(offsets[-1])))
    packing = shared_prefix and _packs_pay(model, rows, pad_token_id, accelerator)
    pieces = plan_pieces(rows, batch_tokens, packing=packing)

    def place(piece: Piece, values: Floats) -> None:
        place_rows(found, offsets, piece.rows, values)
        if progress is not None:
            progress(len(piece.rows))

    missing = {piece.rows: piece for piece in _from_cache(cache, accelerator, rows, pieces, place)}

    def compute(batch: list[int]) -> Floats:
        piece = missing[tuple(batch)]
        values = _score(model, rows, piece, pad_token_id, batch_tokens)
        if cache is not None:
            cache.save(_path(cache, rows, piece), {"scores": values.astype(np.float32)})
        return values

    batches = [list(one) for one in missing]
    found = over_batches([], batches, compute, found, offsets, progress=progress, accelerator=accelerator)
    return TokenScores(found[0], found[1] > 0.5, found[2], found[3], offsets)


def plan_pieces(rows: Sequence[Encoded], batch_tokens: int, *, packing: bool) -> list[Piece]:
    """Plan the forward passes; rows without an answer token are left out."""
    if not packing:
        return [Piece(tuple(batch)) for batch in answer_batches(rows, batch_tokens)]
    packs = pack_rows(rows, _scorable(rows))
    batches = length_batches([len(pack) for pack in packs], batch_tokens)
    chosen = [tuple(packs[place] for place in batch) for batch in batches]
    return [Piece(tuple(row for pack in batch for row in pack.rows), batch) for batch in chosen]


def _scorable(rows: Sequence[Encoded]) -> list[int]:
    return [index for index, row in enumerate(rows) if row.answer_length]


def _packs_pay(model: Any, rows: Sequence[Encoded], pad_token_id: int, accelerator: Any) -> bool:
    """Whether the rows share enough tokens and the model supports trees; the same on every process."""
    scorable = _scorable(rows)
    inner = below_wrapper(model)
    if not fits_trees(inner, rows) or saved_share(rows, pack_rows(rows, scorable)) < _WORTH_PACKING:
        return False
    if inner not in _READERS:
        _READERS[inner] = reads_trees(inner, [rows[index] for index in scorable], pad_token_id)
    return all_agree([_READERS[inner]], accelerator)[0]


def _from_cache(
    cache: Cache | None,
    accelerator: Any,
    rows: Sequence[Encoded],
    pieces: Sequence[Piece],
    place: Callable[[Piece, Floats], None],
) -> list[Piece]:
    """Place the pieces that every process has in its cache; returns the missing pieces."""
    if cache is None or not pieces:
        return list(pieces)
    kept = [cache.load(_path(cache, rows, piece)) for piece in pieces]
    known = all_agree([one is not None for one in kept], accelerator)
    # the results are summed over the processes at the end, so only the main process places cached pieces
    mine = accelerator is None or accelerator.is_main_process
    for piece, one, everybody in zip(pieces, kept, known, strict=True):
        if one is not None and everybody and mine:
            place(piece, one["scores"].astype(np.float64))
    return [piece for piece, everybody in zip(pieces, known, strict=True) if not everybody]


def _path(cache: Cache, rows: Sequence[Encoded], piece: Piece) -> Path:
    ids = [[list(rows[row].input_ids), rows[row].prompt_length] for row in piece.rows]
    sizes = None if piece.packs is None else [len(pack.rows) for pack in piece.packs]
    return cache.path("scores", [ids, sizes])


def _score(model: Any, rows: Sequence[Encoded], piece: Piece, pad_token_id: int, batch_tokens: int) -> Floats:
    """(4, N) the scores of a piece, rows concatenated; every value is exact in fp32."""
    if piece.packs is not None:
        return np.concatenate(score_packs(model, rows, piece.packs, pad_token_id), axis=1)
    scores = score_encoded(
        model, [rows[row] for row in piece.rows], pad_token_id=pad_token_id, batch_tokens=batch_tokens
    )
    hits = scores.hits.astype(np.float64)
    return np.stack([scores.token_logps, hits, scores.vocab_mean, scores.vocab_std])
