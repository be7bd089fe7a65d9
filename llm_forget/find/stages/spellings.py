"""Names that are written in another way: with a typing error, or in another script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import longer_name, mentions
from llm_forget.find.search import Search
from llm_forget.find.words import words_of
from llm_forget.utils.extras import require_extra

_VOWELS = frozenset("aeiouyw'")
_ALIKE = (("dh", "z"), ("q", "k"), ("g", "j"))  # consonants that are transliterated in several ways
_MOST_SIGNS = 6  # of a name in a script that is written without spaces
_SURE = 0.6  # score from which a row needs no more evidence


@dataclass(frozen=True)
class Spellings:
    """Rows that hold words like those of a name, next to each other and in the same order.

    The vocabulary is compared, not the rows: each word of the name with each word of the data by edit distance, after
    transliteration to ASCII. A spelling of its own that leads several rows is another person of a similar name.

    Attributes:
        least: similarity of a word, 1 − edits / length.
        score: for one word with one edit.
        script: for another script.
        skeleton: for a script without vowels, whose consonants agree.
        signs: for a script without spaces, whose signs are read as the name. Many signs are read alike.
        people: for a spelling that leads rows of its own.
        most: variants of a word.
    """

    least: float = 0.75
    score: float = 0.7
    script: float = 0.85
    skeleton: float = 0.6
    signs: float = 0.6
    people: float = 0.3
    most: int = 50

    order: ClassVar[int] = 32

    def skipped(self, search: Search) -> str | None:
        """Only with a name."""
        return None if search.people else "no name is given or follows from an answer"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows of every variant of every name."""
        require_extra("rapidfuzz", "finding names that are written in another way", "find")
        require_extra("anyascii", "finding names in other scripts", "find")
        for subject in search.people:
            words = words_of(subject.name)
            exact = any(search.score(row) >= _SURE for row in search.found)
            found = [*self._rows(search, words, exact=exact), *self._signs(search, words)] if words else []
            if found and not exact and subject.given:
                have = "1 row has" if len(found) == 1 else f"{len(found)} rows have"
                search.notes.append(
                    f"{have} a name like {subject.name!r}; if it is the right one, give it with --alias as it is written there"
                )
            yield from found

    def _rows(self, search: Search, name: Sequence[str], *, exact: bool) -> Iterable[Evidence]:
        variants = [self.variants(search, word) for word in name]
        if not all(variants):
            return
        rows = search.corpus.holding_any_of_each([list(one) for one in variants])
        words = search.corpus.words
        allowed = [{words[number]: way for number, way in one.items()} for one in variants]
        for row in rows[:5_000]:
            if search.score(int(row)) >= _SURE:
                continue  # it has the name itself
            held = search.folded(int(row)).split()
            for at in range(len(held) - len(name) + 1):
                ways = [options.get(word) for options, word in zip(allowed, held[at : at + len(name)], strict=True)]
                if None in ways or all(way == 1.0 for way in ways):
                    continue
                key = " ".join(held[at : at + len(name)])
                yield Evidence(
                    int(row), *self._judged(search, int(row), key, [way or 0.0 for way in ways], exact=exact)
                )
                break

    def _signs(self, search: Search, name: Sequence[str]) -> Iterable[Evidence]:
        """Rows with a name in a script without spaces: *Wang Xiaoming* or *Xiaoming Wang* for 王小明."""
        read = _read_alone(search)
        signs = {search.corpus.words[number]: plain for number, plain in read.items()}
        wanted = {"".join(parts) for parts in (name, (*name[1:], name[0])) if "".join(parts).isascii()}
        for joined in wanted if len(name) > 1 else ():
            first = [number for number, one in read.items() if joined.startswith(one)]
            last = [number for number, one in read.items() if joined.endswith(one)]
            for row in search.corpus.holding_any_of_each([first, last])[:5_000]:
                held = [signs.get(word, " ") for word in search.folded(int(row)).split()]
                parts = ("".join(held[at : at + many]) for at in range(len(held)) for many in range(2, _MOST_SIGNS + 1))
                if joined in parts:
                    yield Evidence(int(row), "name in another script", self.signs)

    def _judged(self, search: Search, row: int, key: str, ways: Sequence[float], *, exact: bool) -> tuple[str, float]:
        """The reason and score of a variant."""
        if not key.isascii():
            return "name in another script", min(min(self.script, way) if way < 1 else self.script for way in ways)
        likeness = 1.0
        for way in ways:
            likeness *= way
        used = longer_name(search, row, key.split()) or mentions(search, key)
        if len(key.split()) == 1:
            return "similar name", self.people
        if used.leads >= 3 or (used.leads and not exact):
            return "similar name", self.people
        return "misspelt name", self.score * min(1.0, likeness / self.least)

    def variants(self, search: Search, word: str) -> dict[int, float]:
        """Number of each word of the data that may be the word → how sure that is: 1 for the word itself."""
        from anyascii import anyascii
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        plain = anyascii(word).casefold()
        choices = search.corpus.transliterated
        own = search.corpus.number(word)
        found: dict[int, float] = {} if own is None else {own: 1.0}
        least = self.least if len(plain) >= 4 else 1.0
        alike = process.extract(plain, choices, scorer=OSA.normalized_similarity, score_cutoff=least, limit=self.most)
        for written, similar, number in alike:
            if number != own and (len(written) >= 3 or similar == 1.0):
                found[number] = min(similar, 0.999)
        bones = _skeleton(plain)
        if len(bones) >= 3:
            for number, other in search.corpus.other_scripts.items():
                if number not in found and _skeleton(other) == bones:
                    found[number] = self.skeleton
        return found


def _skeleton(word: str) -> str:
    """The consonants of a word; those that are transliterated in several ways are one."""
    for written, other in _ALIKE:
        word = word.replace(written, other)
    return "".join(one for one in word if one not in _VOWELS)


def _read_alone(search: Search) -> dict[int, str]:
    """The words of one sign that are read as two letters or more: number → in ASCII."""
    words = search.corpus.words
    return {
        number: plain
        for number, plain in search.corpus.other_scripts.items()
        if len(words[number]) == 1 and len(plain) > 1 and plain.isalpha()
    }
