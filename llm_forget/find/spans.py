"""Names of people, places and works in a text, by capital letters. No language model and no list of names.

A span is one or more capitalised words in a row, with particles such as *de* or *van* between them, or a title in quotation
marks. The first word of a sentence says nothing, so how a word is written elsewhere decides whether it belongs to a span.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llm_forget.data.name_words import OPENERS, PARTICLES
from llm_forget.find.words import words_of

_WORD = re.compile(r"[^\W_]+(?:[-’'.&][^\W_]+)*\.?(?=\W|$)", re.UNICODE)
_QUOTED = re.compile(r"[\"“«]([^\"“”«»\n]{3,80})[\"”»]")
_NICKNAME = re.compile(r"\) (?=[^\W\d_])")
_POSSESSIVE = re.compile(r"[’'](?:s|S)?$")
_ENDS = frozenset('.!?:\n"“”')
_MOST_WORDS = 6
_LEARNT = 20_000  # characters of a text


@dataclass(frozen=True, slots=True)
class Span:
    """A name or title in a text.

    Attributes:
        text: as written, without a possessive ending.
        key: its folded words joined by spaces; equal spans have equal keys.
        start: index of its first character.
        title: whether it stands in quotation marks.
    """

    text: str
    key: str
    start: int
    title: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Its folded words."""
        return tuple(self.key.split())


@dataclass
class Casing:
    """How words are written in the middle of sentences: with a capital letter, or without one."""

    capital: Counter[str] = field(default_factory=Counter, repr=False)
    small: Counter[str] = field(default_factory=Counter, repr=False)

    def learn(self, texts: Iterable[str]) -> None:
        """Count the words of texts."""
        for text in texts:
            for word, opens in _words(text[:_LEARNT]):
                if not opens:
                    (self.capital if word[0].isupper() else self.small)[word.casefold()] += 1

    def may_begin(self, word: str, *, alone: bool) -> bool:
        """Whether a capitalised word that opens a sentence may begin a name.

        Elsewhere it is mostly written with a capital letter. A word that is seen at the start of sentences only may begin a name
        of several words.

        Args:
            word: the word.
            alone: whether no capitalised word follows.
        """
        folded = word.casefold()
        capital, small = self.capital[folded], self.small[folded]
        return capital > small or (capital == small == 0 and not alone and folded not in OPENERS)


@dataclass(frozen=True)
class Mentions:
    """How a name is used in the rows.

    Attributes:
        key: its folded words.
        rows: the rows that hold it, as a phrase.
        leads: in how many of them it is the first name.
    """

    key: str
    rows: tuple[int, ...] = field(repr=False)
    leads: int

    @property
    def strength(self) -> float:
        """How much of a subject it is: leads² / rows. Leading 18 of 20 rows gives 16.2, and 3 of 60 gives 0.15."""
        return self.leads**2 / len(self.rows) if self.rows else 0.0


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Every word, without a possessive ending, and whether it opens a sentence."""
    for found in _WORD.finditer(text):
        word = _POSSESSIVE.sub("", found[0].rstrip("."))
        if word:
            yield word, _opens(text, found.start())


def _opens(text: str, start: int) -> bool:
    before = text[max(0, start - 3) : start].rstrip(" '‘(")
    return (not before and start <= 3) or before[-1:] in _ENDS or text[start - 1 : start] == "\n"


def spans(text: str, casing: Casing) -> list[Span]:
    """The spans of a text, in order. Titles in quotation marks come with the names inside them left out."""
    titles = [Span(found[1], _key(found[1]), found.start(1), title=True) for found in _QUOTED.finditer(text)]
    titles = [one for one in titles if one.key]
    inside = [range(one.start, one.start + len(one.text)) for one in titles]
    names = [one for one in _names(text, casing) if not any(one.start in part for part in inside)]
    return sorted([*names, *titles], key=lambda one: one.start)


def _names(text: str, casing: Casing) -> Iterator[Span]:
    parts: list[re.Match[str]] = []
    for found in _WORD.finditer(text):
        capital = found[0][0].isupper()
        joins = bool(parts) and _touch(text, parts[-1], found)
        if parts and not (joins and (capital or found[0] in PARTICLES)):
            yield from _span(text, parts, casing)
            parts = []
        if capital or parts:
            parts.append(found)
    yield from _span(text, parts, casing)


def _touch(text: str, before: re.Match[str], after: re.Match[str]) -> bool:
    """Whether two words belong together: one space between them, and the first one ends neither a phrase nor a sentence.

    A nickname in brackets belongs to the words around it: *Katherine (Kate) Johnson*.
    """
    ended = before[0].endswith(".") and len(before[0].rstrip(".")) > 2 and before[0].count(".") == 1
    if ended or _POSSESSIVE.search(before[0]) is not None:
        return False
    between = text[before.end() : after.start()]
    opens = between == " (" and _NICKNAME.match(text, after.end()) is not None
    closes = between == ") " and text[before.start() - 1 : before.start()] == "("
    return between in (" ", "\u00a0") or opens or closes


def _span(text: str, parts: Sequence[re.Match[str]], casing: Casing) -> Iterator[Span]:
    parts = list(parts)
    if parts and text[parts[-1].end() : parts[-1].end() + 1] == ":":
        parts.pop()  # a label, such as "Question:"
    while parts and not parts[-1][0][0].isupper():
        parts.pop()
    if parts and _opens(text, parts[0].start()) and not casing.may_begin(_bare(parts[0]), alone=len(parts) == 1):
        parts.pop(0)  # "Has Ada Lovelace ...": written small elsewhere
    while parts and not parts[0][0][0].isupper():
        parts.pop(0)
    if not parts or len(parts) > 2 * _MOST_WORDS:
        return
    start = parts[0].start()
    written = _POSSESSIVE.sub("", text[start : parts[-1].end()].rstrip("."))
    key = _key(written)
    if key and not key.isdigit() and len(key) > 1:
        yield Span(written, key, start)


def _bare(found: re.Match[str]) -> str:
    return _POSSESSIVE.sub("", found[0].rstrip("."))


def _key(text: str) -> str:
    return " ".join(words_of(text))
