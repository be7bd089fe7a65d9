"""Parts of a name: *Lovelace*, *A. Lovelace* or *Ada* where no other name of the data has that part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import mentions, of_others
from llm_forget.find.search import Search
from llm_forget.find.words import words_of

_FOUND = 0.6  # score from which a row needs no more evidence
_LOOKED_UP = 50  # other names


@dataclass(frozen=True)
class NameParts:
    """Rows in which a span is part of a name.

    Attributes:
        score: if nobody else of that name leads rows of the data.
        shared: if somebody else does.
        initials: for an initial and the last word.
        most: a word in more rows than this is no name that says anything.
    """

    score: float = 0.8
    shared: float = 0.25
    initials: float = 0.6
    most: int = 1_000

    order: ClassVar[int] = 35

    def skipped(self, search: Search) -> str | None:
        """Only names of two words or more have parts."""
        return None if any(len(words_of(one.name)) > 1 for one in search.people) else "no name of two words or more"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows of every part."""
        for subject in search.people:
            name = words_of(subject.name)
            if len(name) > 1:
                for word in (name[-1], *name[:-1]):
                    yield from self._rows(search, name, word)

    def _rows(self, search: Search, name: Sequence[str], word: str) -> Iterable[Evidence]:
        number = search.corpus.number(word)
        if number is None or len(word) < 3:
            return
        if search.corpus.frequency[number] > self.most:
            search.missed["parts of a name"] = f"one is in more than {self.most:,} rows, so it says nothing alone"
            return
        others: set[str] = set()
        parts: dict[int, float] = {}
        for row in map(int, search.corpus.holding([number])):
            if not search.score(row) >= _FOUND:
                self._look(search, row, name, word, parts, others)
        alone = not any(mentions(search, key).strength >= 1 for key in sorted(others)[:_LOOKED_UP])
        members = set(search.candidates(self.most, _FOUND))
        for row, score in parts.items():
            free = alone and not of_others(search, row, members)
            yield Evidence(row, "part of the name", score if free else min(score, self.shared))

    def _look(
        self, search: Search, row: int, name: Sequence[str], word: str, parts: dict[int, float], others: set[str]
    ) -> None:
        """Sort the names in a row that have a word of the name into its parts and other people's names."""
        for span in search.spans(row):
            if span.title or word not in span.words:
                continue
            kind = _part(span.words, name)
            if kind:
                parts[row] = self.initials if kind == "initials" else self.score
            elif len(span.words) > 1:
                others.add(span.key)


def _part(words: Sequence[str], name: Sequence[str]) -> str | None:
    """Whether the words of a span are part of a name: ``part``, ``initials``, or None for another name or the whole one."""
    if len(words) < len(name) and set(words) <= set(name):
        return "part"
    if len(words) > 1 and words[-1] == name[-1]:
        firsts = words[:-1]
        if all(
            any(one[0] == other[0] and min(len(one), len(other)) == 1 for other in name[:-1]) or one in name
            for one in firsts
        ):
            return "initials"
    return None
