"""Who a row is about: of the names in it, the one that opens many rows and is rare elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence

from llm_forget.find.search import Search
from llm_forget.find.spans import Mentions, Span
from llm_forget.find.words import words_of

_AROUND = 3  # rows before and after a row
_CLEAR = 3.0  # weight of a name that needs no support from the rows around
_MOST_ROWS = 400  # of a name that are looked at; a name of more rows is judged by the first ones


def phrase_rows(search: Search, words: Sequence[str], most: int | None = None) -> list[int]:
    """The rows that hold words one after the other, in order of the rows.

    Args:
        search: the search.
        words: folded.
        most: look at this many rows that hold all the words.
    """
    numbers = [search.corpus.number(word) for word in words]
    if not words or None in numbers:
        return []
    rows = search.corpus.holding_all(number for number in numbers if number is not None)
    if len(words) == 1:
        return [int(row) for row in rows[:most]]
    phrase = f" {' '.join(words)} "
    return [int(row) for row in rows[:most] if phrase in search.folded(int(row))]


def mentions(search: Search, key: str) -> Mentions:
    """How a name is used. Remembered for the search."""
    known = search.corpus.mentions
    if key not in known:
        words = key.split()
        rows = phrase_rows(search, words, _MOST_ROWS)
        leads = sum(_leads(search.spans(row), words) for row in rows)
        known[key] = Mentions(key, tuple(rows), leads)
    return known[key]


def _leads(spans: Iterable[Span], words: Sequence[str]) -> bool:
    """Whether the first name of a row is the one that is asked for, or part of it."""
    first = next((span for span in spans if not span.title), None)
    return first is not None and (first.key == " ".join(words) or set(first.words) < set(words))


def subject(search: Search, row: int) -> Mentions | None:
    """Who a row is about: the strongest of its names; a name inside a longer one of the row does not count. None if nobody."""
    names = [span for span in search.spans(row) if not span.title]
    keys = list(dict.fromkeys(span.key for span in names))
    keys = [key for key in keys if not any(key != other and f" {key} " in f" {other} " for other in keys)]
    best = max((mentions(search, key) for key in keys), key=weight, default=None)
    return best if best is not None and best.strength > 0 else None


def weight(name: Mentions) -> float:
    """Strength, times 3 for a name of several words: single words with a capital letter are often no names."""
    return name.strength * (3 if " " in name.key else 1)


def subject_in_record(search: Search, row: int) -> Mentions | None:
    """Who a row is about, also if it names nobody and most of the rows around it are about one person."""
    own = subject(search, row)
    if own is not None and weight(own) >= _CLEAR:
        return own
    file = search.corpus.file_of(row)
    around = [one for one in range(row - _AROUND, row + _AROUND + 1) if one != row and 0 <= one < len(search.corpus)]
    names = [subject(search, one) for one in around if search.corpus.file_of(one) == file]
    counts = Counter(name.key for name in names if name is not None and weight(name) >= _CLEAR)
    if counts and counts.most_common(1)[0][1] > _AROUND:
        return mentions(search, counts.most_common(1)[0][0])
    return own


def longer_name(search: Search, row: int, words: Sequence[str]) -> Mentions | None:
    """The name in a row that has the words of another one and more, *Ada Lovelace Byron* for *ada lovelace*; None without one.

    The longer name must lead several rows.

    Args:
        search: the search.
        row: a row that holds the name.
        words: of the name, folded.
    """
    for span in search.spans(row):
        if not span.title and len(span.words) > len(words) and set(words) <= set(span.words):
            found = mentions(search, span.key)
            return found if found.strength >= _CLEAR else None
    return None


def of_others(search: Search, row: int, members: Container[int]) -> bool:
    """Whether a row is about somebody whose other rows are mostly not among ``members``. Part of a wanted name is nobody else."""
    about = subject(search, row)
    if about is None or about.strength < 1 or len(about.rows) < 2:
        return False
    if any(set(about.key.split()) <= set(words_of(one.name)) for one in search.people):
        return False
    return sum(one in members for one in about.rows) < len(about.rows) / 2
