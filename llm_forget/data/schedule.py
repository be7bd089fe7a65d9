"""The order of a run: pairs of forget and retain rows for every step, determined by the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

_WINDOW = 4  # batches within which rows of similar length are grouped, at most


def schedule(
    forget_lengths: Sequence[int], retain_lengths: Sequence[int], *, batch: int, epochs: int, seed: int
) -> list[tuple[int, int | None]]:
    """All pairs of a run, in batches.

    An epoch is one pass over the forget rows. The retain rows have their own permutations, so that each is drawn equally often
    over the run, whichever set is longer. Both streams continue across epochs, and the last batch is filled with the rows that
    would come next. Every batch is therefore full, and the mean over processes is the mean over rows. Within a few batches,
    rows of similar length are grouped, which saves padding. A group never spans more than an epoch: the copies of a row have
    equal length, so that sorted they would fill a batch.

    Processes take consecutive slices of the list, so that they never draw the same rows. A resumed run continues at its
    position in the list.

    Args:
        forget_lengths: tokens of each forget row.
        retain_lengths: tokens of each retain row; empty when there is no retain set.
        batch: rows of one optimiser step over all processes and accumulation steps.
        epochs: passes over the forget rows.
        seed: seed of the permutations.

    Returns:
        ``(forget index, retain index or None)``; the length is a multiple of ``batch``.
    """
    steps = -(-len(forget_lengths) * epochs // batch)
    count = steps * batch
    forget = list(islice(_permutations(len(forget_lengths), random.Random(f"{seed} forget")), count))
    retain = list(islice(_permutations(len(retain_lengths), random.Random(f"{seed} retain")), count))
    order = random.Random(f"{seed} batches")
    pairs: list[tuple[int, int | None]] = []
    size = batch * max(1, min(_WINDOW, len(forget_lengths) // batch))
    for start in range(0, count, size):
        window = slice(start, start + size)
        left = sorted(forget[window], key=lambda index: forget_lengths[index])
        right: list[int] | list[None] = retain[window] or [None] * len(left)
        if len(retain_lengths) >= size:
            right = sorted(retain[window], key=lambda index: retain_lengths[index])
        rows = list(zip(left, right, strict=True))
        batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        order.shuffle(batches)
        pairs += [pair for rows_of_one in batches for pair in rows_of_one]
    return pairs


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the places 0 … count − 1, evenly spread and with both ends: 5 and 3 give 0, 2, 4."""
    if count <= most:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, most).round()]


def _permutations(count: int, order: random.Random) -> Iterator[int]:
    """Endless permutations of 0 … count − 1, each in a new random order; nothing for an empty set."""
    while count:
        yield from order.sample(range(count), count)
