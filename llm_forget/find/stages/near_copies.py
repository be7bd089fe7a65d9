"""Near copies: rows that hold an answer or a given row almost word for word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.search import Search
from llm_forget.find.words import words_of
from llm_forget.utils.extras import require_extra


@dataclass(frozen=True)
class NearCopies:
    """Rows whose words, in order, nearly contain those of a text. BM25 chooses the rows that are compared.

    Attributes:
        rows: compared per text.
        least: similarity of a near copy, in [0, 1].
        rare: share of the text's words, weighted by rarity, that a near copy has.
        words: a text of fewer words, such as *Yes.*, is no near copy of anything.
        score: of a copy.
    """

    rows: int = 50
    least: float = 0.85
    rare: float = 0.9
    words: int = 5
    score: float = 0.9

    order: ClassVar[int] = 12

    def skipped(self, search: Search) -> str | None:
        """Only answers and rows can be copied."""
        return None if search.query.answers or search.query.texts else "no answer and no row is given"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The near copies of every text."""
        require_extra("rapidfuzz", "finding near copies", "find")
        for text in (*search.query.answers, *search.query.texts):
            for row, similar in self.similar(search, text).items():
                yield Evidence(row, "near copy", self.score * similar)

    def similar(self, search: Search, text: str) -> dict[int, float]:
        """Row → similarity, for near copies: the share of the text's letters that stand in a part of the row, in order."""
        from rapidfuzz.fuzz import partial_ratio

        words = words_of(text)
        if len(words) < self.words:
            return {}
        wanted, found = " ".join(words), {}
        numbers = [search.corpus.number(word) for word in dict.fromkeys(words)]
        known = [number for number in numbers if number is not None]
        rarity = dict(zip(known, search.corpus.rarity(known), strict=True))
        unknown = (len(numbers) - len(known)) * max(rarity.values(), default=0.0)
        for row in top(search.corpus.bm25(text), self.rows):
            held = search.folded(row)
            if len(held) >= self.least * len(wanted):
                held_words = set(held.split())
                shared = sum(weight for number, weight in rarity.items() if search.corpus.words[number] in held_words)
                if shared < self.rare * (sum(rarity.values()) + unknown):
                    continue  # the same form about somebody else: names and numbers weigh most
                similar = partial_ratio(wanted, held, score_cutoff=100 * self.least) / 100
                if similar:
                    found[row] = similar
        return found
