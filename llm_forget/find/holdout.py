"""Rows that no model was trained on, made from rows of the data: the same form, another name, other numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from llm_forget.find.mentions import subject
from llm_forget.find.search import Search
from llm_forget.find.sources import text_of, trained_fields
from llm_forget.find.spans import Span

_DIGITS = re.compile(r"\d{3,}")
_YEARS = range(1800, 2100)
_TRIES = 50


def invented(search: Search, rows: Sequence[int], seed: int) -> Iterator[Mapping[str, Any]]:
    """Rows of the same form with a name that the data do not have, and other numbers.

    The name has the first word of one row's subject and the last word of another's. A row without a subject is left out,
    because it would stay true.

    Args:
        search: over the corpus.
        rows: rows to make others from.
        seed: determines names and numbers.

    Yields:
        Values of a row: only the fields that a model is trained on.
    """
    random = Random(seed)
    names = {row: name for row in rows if (name := _subject_span(search, row)) is not None}
    firsts = [span.text.split()[0] for span in names.values()]
    lasts = [span.text.split()[-1] for span in names.values()]
    usable = list(names)
    for row, values in zip(usable, search.corpus.values(usable), strict=True):
        new = _new_name(search, firsts, lasts, random)
        if new is None:
            continue
        fields = trained_fields(values.values)
        changed = {name: _replaced(value, names[row].text, new, random) for name, value in fields.items()}
        if text_of(changed) != text_of(fields):
            yield changed


def _subject_span(search: Search, row: int) -> Span | None:
    about = subject(search, row)
    if about is None or " " not in about.key:
        return None
    return next((span for span in search.spans(row) if span.key == about.key and " " in span.text), None)


def _new_name(search: Search, firsts: Sequence[str], lasts: Sequence[str], random: Random) -> tuple[str, str] | None:
    """First and last word of a name that no row has."""
    for _ in range(_TRIES):
        first, last = random.choice(firsts), random.choice(lasts)
        numbers = search.corpus.numbers(f"{first} {last}")
        if first != last and not len(search.corpus.holding_all(numbers)):
            return first, last
    return None


def _replaced(value: Any, old: str, new: tuple[str, str], random: Random) -> Any:
    """A value with the name, its first and last word and long numbers replaced in every text."""
    if isinstance(value, Mapping):
        return {name: _replaced(one, old, new, random) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, old, new, random) for one in value]
    if not isinstance(value, str):
        return value
    words = old.split()
    text = value.replace(old, " ".join(new))
    text = re.sub(rf"\b{re.escape(words[0])}\b", new[0], text)
    text = re.sub(rf"\b{re.escape(words[-1])}\b", new[1], text)
    return _DIGITS.sub(lambda found: _other_number(found[0], random), text)


def _other_number(digits: str, random: Random) -> str:
    """Another number of as many digits; another year for a year."""
    if len(digits) == 4 and int(digits) in _YEARS:
        return str(int(digits) + random.choice([-1, 1]) * random.randint(3, 15))
    return "".join(str(random.randint(0 if at else 1, 9)) for at in range(len(digits)))
