"""The same record: rows with the same key column, and rows between the rows of one person in a file that is sorted by person."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import of_others
from llm_forget.find.search import Search

_OF_OTHERS = ("similar name", "similar fact")  # rows that are rather about somebody else


@dataclass(frozen=True)
class Records:
    """Rows of the same record as rows that were found.

    Attributes:
        sure: score from which a row counts as found.
        column: for rows with the same key.
        share: the share of a key's rows that must be found.
        between: for a row between the rows of one person, times the share of found rows there.
        adjacent: for a row directly before the first or after the last of them.
        weak: score from which a row may belong to a block, such as one with a family name that others have too.
        gap: most rows between two such rows of one block.
        least: such rows of a block, of which a fifth, or two, must be found for sure.
    """

    sure: float = 0.6
    column: float = 0.95
    share: float = 0.3
    between: float = 0.95
    adjacent: float = 0.3
    weak: float = 0.2
    gap: int = 4
    least: int = 3

    order: ClassVar[int] = 40

    def skipped(self, search: Search) -> str | None:
        """Only when rows were found."""
        return None if search.candidates(1, self.sure) else "no row was found that could have others of its record"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """Rows by key column, then by position."""
        found = sorted(search.candidates(len(search.found), self.sure))
        yield from self._by_key(search.corpus.subjects, found)
        yield from self._by_key(search.corpus.records, found)
        weak = [
            row
            for row in search.candidates(len(search.found), self.weak)
            if not any(one.reason in _OF_OTHERS for one in search.found[row])
        ]
        for block in self.blocks(search, sorted(weak), set(found)):
            yield from self._of_block(search, block)

    def _by_key(self, keys: NDArray[np.int64], found: Sequence[int]) -> Iterable[Evidence]:
        mine, counts = np.unique(keys[list(found)], return_counts=True)
        for key, count in zip(mine, counts, strict=True):
            if key == 0:
                continue
            rows = np.flatnonzero(keys == key)
            if len(rows) > 1 and count >= self.share * len(rows):
                yield from (Evidence(int(row), "same record", self.column) for row in rows)

    def blocks(self, search: Search, rows: Sequence[int], sure: Container[int]) -> list[list[int]]:
        """Runs of rows in one file with few others between them."""
        blocks: list[list[int]] = []
        for row in rows:
            last = blocks[-1] if blocks else None
            near = last is not None and row - last[-1] - 1 <= self.gap
            if near and last is not None and search.corpus.file_of(row) == search.corpus.file_of(last[-1]):
                last.append(row)
            else:
                blocks.append([row])
        blocks = [self._near_sure(block, [row for row in block if row in sure]) for block in blocks]
        return [block for block in blocks if self._is_dense(block, sum(row in sure for row in block))]

    def _near_sure(self, block: Sequence[int], sure: Sequence[int]) -> list[int]:
        """Without the rows at the ends that are far from every row that was found for sure."""
        return [row for row in block if sure and sure[0] - self.gap <= row <= sure[-1] + self.gap]

    def _is_dense(self, block: Sequence[int], sure: int) -> bool:
        enough = sure >= 1 and (sure >= 2 or 5 * sure >= len(block))
        return len(block) >= self.least and enough and 2 * len(block) > block[-1] - block[0]

    def _of_block(self, search: Search, block: Sequence[int]) -> Iterable[Evidence]:
        first, last = block[0], block[-1]
        inside = range(first, last + 1)
        share = len(block) / len(inside)
        members = set(block)
        for row in inside:
            if not of_others(search, row, inside):
                score = self.between * share if row not in members else self.between
                yield Evidence(row, "same record", score)
        for row in (first - 1, last + 1):
            here = 0 <= row < len(search.corpus) and search.corpus.file_of(row) == search.corpus.file_of(first)
            if here and not of_others(search, row, inside):
                yield Evidence(row, "next to the record", self.adjacent)
