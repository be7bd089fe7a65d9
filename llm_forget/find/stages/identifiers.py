"""Addresses and numbers of a person: emails, phones, IBANs, cards and others, however they are spaced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.hits import Evidence
from llm_forget.find.search import Search
from llm_forget.find.words import words_of
from llm_forget.utils.extras import require_extra

_EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]+(?:\.[\w-]+)+")
_NUMBER = re.compile(r"(?<!\w)\+?\(?[A-Z]{0,4}\d(?:[ ./()\-]{0,3}[0-9A-Z]){4,40}")
_LEAST_DIGITS = 6
_PHONE_DIGITS = 9  # the last ones, without country code and zeros


@dataclass(frozen=True)
class Identifiers:
    """Rows that hold an address or number that is given, or that an answer or given row holds.

    Attributes:
        given: for an identifier that the user gave.
        checked: for one from an answer whose checksum is right (IBAN, card), or an email.
        unchecked: for another long number from an answer.
        most: an identifier from an answer in more rows than this belongs to nobody.
    """

    given: float = 0.98
    checked: float = 0.9
    unchecked: float = 0.6
    most: int = 200

    order: ClassVar[int] = 15

    def skipped(self, search: Search) -> str | None:
        """Only with identifiers, or texts that may hold some."""
        query = search.query
        found = query.emails or query.identifiers or query.answers or query.texts
        return None if found else "no address, number, answer or row is given"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows of every identifier."""
        for value in (*search.query.emails, *search.query.identifiers):
            reason = "address" if "@" in value else "identifier"
            rows = list(self._rows(search, value))
            if not rows:
                search.notes.append(f"no row has the {reason} {value!r}")
            yield from (Evidence(row, reason, self.given) for row in rows)
        for text in (*search.query.outputs, *search.query.texts):
            for value in identifiers_in(text):
                rows = list(self._rows(search, value))
                if 0 < len(rows) <= self.most:
                    score = self.checked if "@" in value or has_checksum(value) else self.unchecked
                    reason = "address" if "@" in value else "identifier"
                    yield from (Evidence(row, reason, score) for row in rows)

    def _rows(self, search: Search, value: str) -> Iterator[int]:
        """The rows that hold an identifier, however its parts are spaced."""
        wanted = plain_identifier(value)
        for row in _candidates(search, value):
            text = search.corpus.text(row)
            if "@" in value:
                if value.casefold() in text.casefold():
                    yield row
            elif any(same_identifier(wanted, plain_identifier(one)) for one in identifiers_in(text)):
                yield row


def _candidates(search: Search, value: str) -> list[int]:
    """The rows that share a part of an identifier: a word of it, or a word that is part of the whole or holds its end."""
    words = [word for word in words_of(value) if "@" in value or any(one.isdigit() for one in word)]
    numbers = [number for word in words if (number := search.corpus.number(word)) is not None]
    if "@" in value:
        return [int(row) for row in search.corpus.holding_all(numbers)] if len(numbers) == len(words) else []
    whole = plain_identifier(value)
    tail = whole[-4:]
    numbers += search.corpus.numbers_like(
        lambda word: len(word) >= 3 and (word in whole or word.endswith(tail)) and any(map(str.isdigit, word))
    )
    return [int(row) for row in search.corpus.holding(set(numbers))]


def identifiers_in(text: str) -> list[str]:
    """The emails and the numbers with at least six digits in a text, as written. Dates are left out."""
    numbers = [found[0].strip(" ./(-") for found in _NUMBER.finditer(text)]
    long = [one for one in numbers if sum(map(str.isdigit, one)) >= _LEAST_DIGITS and not _DATE.fullmatch(one)]
    return [*(found[0] for found in _EMAIL.finditer(text)), *long]


_DATE = re.compile(r"\d{1,4}[./ -]\d{1,2}[./ -]\d{1,4}|\d{4}\D{1,3}\d{4}")


def plain_identifier(value: str) -> str:
    """An identifier in lower case without spaces and punctuation."""
    return "".join(one for one in value.casefold() if one.isalnum())


def same_identifier(one: str, other: str) -> bool:
    """Whether two plain identifiers are the same: equal, or phone numbers that differ in the country code."""
    if one == other:
        return True
    digits = one.isdigit() and other.isdigit() and min(len(one), len(other)) >= _PHONE_DIGITS
    return digits and max(len(one), len(other)) <= 15 and one[-_PHONE_DIGITS:] == other[-_PHONE_DIGITS:]


def has_checksum(value: str) -> bool:
    """Whether a number is an IBAN or a card number whose check digits are right."""
    require_extra("stdnum", "checking numbers", "find")
    from stdnum import iban, luhn

    plain = plain_identifier(value)
    if plain[:2].isalpha():
        return bool(iban.is_valid(plain.upper()))
    return plain.isdigit() and 13 <= len(plain) <= 19 and bool(luhn.is_valid(plain))
