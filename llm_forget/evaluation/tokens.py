"""Scores of answer tokens as arrays. Metrics get these instead of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenScores:
    """Scores of the answer tokens of E rows, concatenated: N tokens in total.

    Attributes:
        token_logps: (N,) log-probability of each answer token given the tokens before it, in nats.
        hits: (N,) whether the token is the arg-max of the vocabulary.
        vocab_mean: (N,) mean of log p(v) for v drawn from the model's p, in nats; this is minus the entropy.
        vocab_std: (N,) standard deviation of log p(v) for v drawn from the model's p, in nats.
        offsets: (E + 1,) row i has the tokens ``offsets[i]:offsets[i + 1]``.
    """

    token_logps: Floats
    hits: npt.NDArray[np.bool_]
    vocab_mean: Floats
    vocab_std: Floats
    offsets: Ints

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(E,) number of scored tokens of each row."""
        return np.diff(self.offsets)

    def mean_logps(self) -> Floats:
        """(E,) mean log-probability per answer token in nats, in (−∞, 0]; NaN for a row without a scored token."""
        return self.row_means(self.token_logps)

    def row_means(self, values: npt.ArrayLike) -> Floats:
        """(N,) one value per token → (E,) mean of each row; NaN for a row without tokens."""
        values = np.asarray(values, dtype=np.float64)
        means = np.full(len(self), np.nan)
        filled = self.lengths > 0
        if filled.any():
            # reduceat needs non-empty rows: without the empty ones, each row ends at the start of the next
            means[filled] = np.add.reduceat(values, self.offsets[:-1][filled]) / self.lengths[filled]
        return means

    def row(self, index: int) -> TokenScores:
        """The scores of one row."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        offsets = np.array([0, own.stop - own.start], dtype=np.int64)
        return TokenScores(self.token_logps[own], self.hits[own], self.vocab_mean[own], self.vocab_std[own], offsets)

    def select(self, start: int, stop: int) -> TokenScores:
        """The scores of the rows ``start:stop``."""
        own = slice(int(self.offsets[start]), int(self.offsets[stop]))
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return TokenScores(self.token_logps[own], self.hits[own], self.vocab_mean[own], self.vocab_std[own], offsets)

    def grouped(self, owners: Sequence[int], count: int) -> TokenScores:
        """The same tokens with one row per owner: the parts of a long example become one row again.

        Args:
            owners: (E,) the owner of each row, ascending from 0.
            count: number of owners.
        """
        offsets = self.offsets[np.searchsorted(np.asarray(owners), np.arange(count + 1))]
        return TokenScores(self.token_logps, self.hits, self.vocab_mean, self.vocab_std, offsets)


def as_floats(values: npt.ArrayLike) -> Floats:
    """Convert to an array of doubles."""
    return np.asarray(values, dtype=np.float64)
