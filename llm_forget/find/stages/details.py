"""Shared details: a title, place or number that is only in the rows that were found leads to a row that names nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import of_others, phrase_rows
from llm_forget.find.search import Search


@dataclass(frozen=True)
class Details:
    """Rows that share a rare name, title or number with several rows that were found.

    Attributes:
        sure: score from which a row counts as found.
        score: for a detail of which all rows but this one were found.
        share: the share of a detail's rows that must be found.
        others: factor for a row that is about somebody else.
        most: rows of a detail, and details that are looked up.
    """

    sure: float = 0.6
    score: float = 0.75
    share: float = 0.6
    others: float = 0.2
    most: int = 200

    order: ClassVar[int] = 50

    def skipped(self, search: Search) -> str | None:
        """Only when rows were found."""
        return None if search.candidates(1, self.sure) else "no row was found whose details could be looked up"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The other rows of every detail."""
        found = set(search.candidates(500, self.sure))
        counts: Counter[str] = Counter()
        for row in found:
            counts.update({span.key for span in search.spans(row) if len(span.key) > 3})
        for key, inside in counts.most_common(self.most):
            words = key.split()
            least = 2 if len(words) > 1 else 3
            numbers = [number for word in words if (number := search.corpus.number(word)) is not None]
            if inside < least or min(search.corpus.frequency[numbers], default=0) > self.most:
                continue
            rows = phrase_rows(search, words)
            share = inside / len(rows) if rows else 0.0
            if share < self.share or len(rows) > self.most:
                continue
            for row in rows:
                if row not in found:
                    factor = self.others if of_others(search, row, found) else 1.0
                    yield Evidence(row, "shared detail", self.score * share * factor)
