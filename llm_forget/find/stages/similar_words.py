"""BM25: rows that share rare words with an answer, or with rows that are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.search import Search


@dataclass(frozen=True)
class SimilarWords:
    """BM25 for every answer and every given row. Words alone prove little, so its score only orders rows.

    Attributes:
        most: rows per text.
        score: of the best row of a text.
    """

    most: int = 50
    score: float = 0.15

    order: ClassVar[int] = 10

    def skipped(self, search: Search) -> str | None:
        """Only answers and rows have words to compare."""
        return None if search.query.answers or search.query.texts else "no answer and no row is given"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The best rows of every text, their scores relative to the best."""
        for text in (*search.query.outputs, *search.query.texts):
            scores = search.corpus.bm25(text)
            best = top(scores, self.most)
            for row in best:
                yield Evidence(row, "similar words", self.score * float(scores[row] / scores[best[0]]))
