"""The same facts in other words: rows that hold the rare words of an answer or a given row, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import of_others
from llm_forget.find.search import Search


@dataclass(frozen=True)
class SameWords:
    """Rows with most words of a text, each word weighted by its rarity, so that names and numbers decide.

    Attributes:
        rows: compared per text.
        least: share of the text's weight that the row must have.
        sure: score from which a row counts as found.
        words: a text of fewer words is the same as too many rows.
        score: of a row with all words.
        others: factor for a row about somebody else, once it is known whom the text is about: among many people, some have
            nearly the same job, award or pet.
    """

    rows: int = 50
    least: float = 0.7
    sure: float = 0.6
    words: int = 5
    score: float = 0.65
    others: float = 0.4

    order: ClassVar[int] = 38

    def skipped(self, search: Search) -> str | None:
        """Only answers and rows have words to compare."""
        return None if search.query.answers or search.query.texts else "no answer and no row is given"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows of every text."""
        corpus = search.corpus
        found = set(search.candidates(len(search.found), self.sure)) if search.people else None
        for text in (*search.query.answers, *search.query.texts):
            numbers = corpus.numbers(text)
            if len(numbers) < self.words:
                continue
            weights = dict(zip(numbers, corpus.rarity(numbers), strict=True))
            whole = float(sum(weights.values()))
            for row in top(corpus.bm25(text), self.rows):
                held = set(search.folded(row).split())
                share = sum(weight for number, weight in weights.items() if corpus.words[number] in held) / whole
                if share >= self.least:
                    elsewhere = found is not None and row not in found and of_others(search, row, found)
                    reason, factor = ("similar fact", self.others) if elsewhere else ("paraphrase", 1.0)
                    yield Evidence(row, reason, self.score * share * factor)
