"""Names as they are given: all words of a name in a row, one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import longer_name, mentions
from llm_forget.find.search import Search
from llm_forget.find.words import words_of


@dataclass(frozen=True)
class Names:
    """Rows that hold a name or an alias, in the order given or with the family name first.

    Attributes:
        score: for the words one after the other.
        apart: for a first and a last name with up to two words between them, or with the family name first.
        single: for a name of one word, which many people may have.
        others: for the words in a longer name, if the data have the name alone and several longer ones.
    """

    score: float = 0.98
    apart: float = 0.8
    single: float = 0.75
    others: float = 0.25

    order: ClassVar[int] = 30

    def skipped(self, search: Search) -> str | None:
        """Only with a name."""
        return None if search.people else "no name is given or follows from an answer"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows of every name."""
        aliases = set(search.query.aliases) - set(search.query.people)
        for subject in search.people:
            words = words_of(subject.name)
            reason = "alias" if subject.name in aliases else "name"
            found = list(self._rows(search, words, reason))
            if not found and subject.given:
                search.notes.append(f"no row has the {reason} {subject.name!r} as it is written")
            yield from found

    def _rows(self, search: Search, words: Sequence[str], reason: str) -> Iterable[Evidence]:
        needed = words if not _has_middle(words) else (words[0], words[-1])
        numbers = [search.corpus.number(word) for word in needed]
        if not words or None in numbers:
            return
        # the name alone, and two longer ones or more with its words: these are other people
        alone = len(words) > 1 and mentions(search, " ".join(words)).leads > 1
        longer: dict[str, list[Evidence]] = {}
        for row in map(int, search.corpus.holding_all(number for number in numbers if number is not None)):
            score = self.match(search.folded(row), words)
            if not score and self._is_reversed(search, row, words):
                score = self.apart
            other = longer_name(search, row, words) if score and alone else None
            if other is not None:
                longer.setdefault(other.key, []).append(Evidence(row, reason, score))
            elif score:
                yield Evidence(row, reason, score)
        several = _distinct(longer) > 1
        for one in (one for found in longer.values() for one in found):
            yield Evidence(one.row, "similar name", self.others) if several else one

    def _is_reversed(self, search: Search, row: int, name: Sequence[str]) -> bool:
        """Whether a row has the family name first: ``Lovelace, Ada``, or as a name of its own that does not go on."""
        key = " ".join((name[-1], *name[:-1]))
        if f" {key} " not in search.folded(row):
            return False
        comma = re.search(rf"\b{re.escape(name[-1])},\s+{re.escape(name[0])}\b", search.corpus.text(row), re.IGNORECASE)
        return comma is not None or any(span.key == key for span in search.spans(row))

    def match(self, text: str, name: Sequence[str]) -> float:
        """How surely a folded text, with spaces around every word, holds a name; 0 if it does not.

        *Ada Lovelace* is in *to Ada Lovelace* with ``score`` and in *Ada King Lovelace* with ``apart``. A middle name and
        its initial are the same, so *Ada K. Lovelace* is in *Ada King Lovelace*, and in *Ada Lovelace* with ``apart``.
        """
        if f" {' '.join(name)} " in text:
            return self.score if len(name) > 1 else self.single
        first, last = name[0], name[-1]
        if _has_middle(name):
            start = name[1][0]
            middle = rf"{start}\S*" if len(name[1]) == 1 else start
            if re.search(rf" {re.escape(first)} {middle} {re.escape(last)} ", text):
                return self.score
            return self.apart if len(name[1]) == 1 and f" {first} {last} " in text else 0.0
        if len(name) != 2:
            return 0.0  # other words in the middle make another person
        return self.apart if re.search(rf" {re.escape(first)}(?: \S+){{1,2}} {re.escape(last)} ", text) else 0.0


def _has_middle(name: Sequence[str]) -> bool:
    """Whether a name has a middle name or initial."""
    return len(name) == 3


def _distinct(names: Iterable[str]) -> int:
    """The number of names, of which those inside a longer one do not count: *ada king lovelace* in *ada king lovelace sr*."""
    words = [set(name.split()) for name in names]
    return sum(not any(one < other for other in words) for one in words)
