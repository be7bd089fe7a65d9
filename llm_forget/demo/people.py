"""Invented people: a unique name, a unique house, and values for every kind of fact.

Everything about person ``i`` follows from the seed and ``i`` alone, so it does not depend on how many people are made. Names and
houses are indices into random permutations of all names and houses, which makes them unique.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from llm_forget.demo import words
from llm_forget.demo.wordings import WORDINGS
from llm_forget.errors import DataError

Gender = Literal["f", "m"]
Uniform = Callable[[], float]  # the next number in [0, 1); Random.random is several times faster than Random.choice

KINDS = tuple(WORDINGS)
# People per seed: 16 cultures with 2^16 names each. A Feistel network can permute a power of four.
_HALF_BITS = 10
CAPACITY = 1 << 2 * _HALF_BITS
_PER_CULTURE = CAPACITY // len(words.CULTURES)

_HOUSE_NUMBERS = range(112, 9990)
_LAST_YEAR = 2023
# Only days that every month has.
_DAYS = tuple(
    f"{day} {month}"
    for month in (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    )
    for day in range(1, 29)
)
# Letters of plates, codes and card numbers: consonants only, so that they spell no word.
_LETTERS = "BDHLMNPRTVXZ"
_PAIRS = tuple(a + b for a in _LETTERS for b in _LETTERS if a != b)
_DOCTORS = tuple(family for culture in words.CULTURES for family in culture.families)
_GIVEN: tuple[tuple[tuple[str, Gender], ...], ...] = tuple(
    (*((name, "f") for name in culture.women), *((name, "m") for name in culture.men)) for culture in words.CULTURES
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about a person.

    Attributes:
        kind: one of ``KINDS``.
        values: the values, in the order of the slots of ``WORDINGS[kind]``.
    """

    kind: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person.

    Attributes:
        name: the full name, unique within the seed.
        given: the first name.
        family: the last name, not unique.
        gender: ``f`` or ``m``; selects the pronouns.
        culture: index into ``words.CULTURES``, the source of the names.
        birth_year: the years of other facts depend on it.
        index: the number of the person.
        seed: the seed of all people.
        shared: kind, slot and value that this person deliberately shares with another one.
    """

    name: str
    given: str
    family: str
    gender: Gender
    culture: int
    birth_year: int
    index: int
    seed: int
    shared: tuple[str, str, str] | None = None

    @property
    def facts(self) -> tuple[Fact, ...]:
        """One fact of each kind, in the order of ``KINDS``. Computed on every call, since a million people take gigabytes."""
        uniform = Random(f"facts/{self.seed}/{self.index}").random
        values = {kind: draw(uniform, self) for kind, draw in DRAW.items()}
        # The values drawn for these two only serve as wrong answers; replace them by the true ones.
        values["birth"] = (_date(uniform, self.birth_year, self.birth_year), *values["birth"][1:])
        values["address"] = (_house(_permuted(self.index, f"houses/{self.seed}")), *values["address"][1:])
        if self.shared is not None:
            kind, slot, value = self.shared
            at = WORDINGS[kind].slots.index(slot)
            values[kind] = (*values[kind][:at], value, *values[kind][at + 1 :])
        return tuple([Fact(kind, values[kind]) for kind in KINDS])

    def value(self, kind: str, slot: str) -> str:
        """One value of one fact, such as ``value("work", "employer")``."""
        return self.facts[KINDS.index(kind)].values[WORDINGS[kind].slots.index(slot)]


def people(count: int, seed: int, start: int = 0) -> list[Person]:
    """The people with numbers ``start`` to ``start + count - 1``.

    Args:
        count: number of people.
        seed: another seed gives other people.
        start: number of the first one.

    Returns:
        The people. Full names and houses are unique within a seed.

    Raises:
        DataError: a number is negative, or there are not enough names.
    """
    if count < 0 or start < 0 or start + count > CAPACITY:
        raise DataError(
            f"people {start} to {start + count} of seed {seed} requested; a seed has people 0 to {CAPACITY}: request fewer, or "
            "use another seed for the rest"
        )
    return [_person(index, seed) for index in range(start, start + count)]


def _person(index: int, seed: int) -> Person:
    """Person number ``index`` of a seed."""
    culture, name, given, family, gender = _name(_permuted(index, f"names/{seed}"))
    birth_year = 1940 + _permuted(index, f"years/{seed}") % 56
    return Person(name, given, family, gender, culture, birth_year, index, seed)


@lru_cache(maxsize=16)
def _round_tables(key: str) -> tuple[tuple[int, ...], ...]:
    """The round functions of a Feistel network: four tables of random numbers."""
    rng = Random(key)
    return tuple(tuple(rng.getrandbits(_HALF_BITS) for _ in range(1 << _HALF_BITS)) for _ in range(4))


def _permuted(index: int, key: str) -> int:
    """The image of an index under a random permutation of ``range(CAPACITY)`` that the key selects."""
    left, right = index >> _HALF_BITS, index & ((1 << _HALF_BITS) - 1)
    for table in _round_tables(key):
        left, right = right, left ^ table[right]
    return left << _HALF_BITS | right


def _name(place: int) -> tuple[int, str, str, str, Gender]:
    """Culture, full name, given name, family name and gender at an index of the list of all names.

    Each culture's part contains every given name with every family name, followed by an even sample of names with the mother's
    family name in the middle.
    """
    culture, rest = place % len(words.CULTURES), place // len(words.CULTURES)
    given_names, families = _GIVEN[culture], words.CULTURES[culture].families
    short = len(given_names) * len(families)
    if rest < short:
        first, last = divmod(rest, len(families))
        middle = ""
    else:
        others = len(families) - 1
        step = (rest - short) * (short * others) // (_PER_CULTURE - short)
        first, pair = divmod(step, len(families) * others)
        last, other = divmod(pair, others)
        middle = families[other + (other >= last)] + " "  # skips the family name itself
    given, gender = given_names[first]
    return culture, f"{given} {middle}{families[last]}", given, families[last], gender


def _house(place: int) -> str:
    """House number and street at an index of the list of all houses, sampled evenly."""
    street, number = divmod(place * (len(words.STREETS) * len(_HOUSE_NUMBERS)) // CAPACITY, len(_HOUSE_NUMBERS))
    return f"{_HOUSE_NUMBERS[number]} {words.STREETS[street]}"


def _pick(uniform: Uniform, options: Sequence[str]) -> str:
    return options[int(uniform() * len(options))]


def _date(uniform: Uniform, first_year: int, last_year: int) -> str:
    year = first_year + int(uniform() * (last_year - first_year + 1))
    return f"{_DAYS[int(uniform() * len(_DAYS))]} {year}"


def _year(uniform: Uniform, first: int, last: int) -> str:
    return str(first + int(uniform() * (last - first + 1)))


def _birth(uniform: Uniform, person: Person) -> tuple[str, ...]:
    date = _date(uniform, person.birth_year - 15, person.birth_year + 15)
    return date, _pick(uniform, words.BIRTHPLACES), _pick(uniform, words.TOWNS)


def _address(uniform: Uniform, person: Person) -> tuple[str, ...]:
    digits = int(uniform() * 100)
    code = f"{_pick(uniform, _PAIRS)}{digits // 10} {digits % 10}{_pick(uniform, _PAIRS)}"
    return _house(int(uniform() * CAPACITY)), _pick(uniform, words.TOWNS), code


def _work(uniform: Uniform, person: Person) -> tuple[str, ...]:
    year = _year(uniform, person.birth_year + 20, min(person.birth_year + 50, _LAST_YEAR))
    return _pick(uniform, words.JOBS), _pick(uniform, words.EMPLOYERS), year


def _library_card(uniform: Uniform, person: Person) -> tuple[str, ...]:
    number = f"{10000 + int(uniform() * 90000)}-{_pick(uniform, _PAIRS)}"
    return number, _pick(uniform, words.LIBRARIES), _date(uniform, 2001, _LAST_YEAR)


def _family(uniform: Uniform, person: Person) -> tuple[str, ...]:
    relation, is_woman = words.RELATIONS[int(uniform() * len(words.RELATIONS))]
    culture = words.CULTURES[person.culture]
    names = culture.women if is_woman else culture.men
    at = int(uniform() * len(names))
    relative = names[at] if names[at] != person.given else names[at - 1]
    return relation, relative, _pick(uniform, words.JOBS), _pick(uniform, words.TOWNS)


def _education(uniform: Uniform, person: Person) -> tuple[str, ...]:
    year = _year(uniform, person.birth_year + 20, person.birth_year + 28)
    return _pick(uniform, words.SUBJECTS), _pick(uniform, words.SCHOOLS), _pick(uniform, words.TOWNS), year


def _award(uniform: Uniform, person: Person) -> tuple[str, ...]:
    year = _year(uniform, person.birth_year + 20, _LAST_YEAR)
    return _pick(uniform, words.AWARDS), _pick(uniform, words.DEEDS), _pick(uniform, words.TOWNS), year


def _vehicle(uniform: Uniform, person: Person) -> tuple[str, ...]:
    plate = f"{_pick(uniform, _PAIRS)} {1000 + int(uniform() * 9000)}"
    return _pick(uniform, words.CARS), plate, _pick(uniform, words.TOWNS)


def _pet(uniform: Uniform, person: Person) -> tuple[str, ...]:
    year = _year(uniform, 2008, _LAST_YEAR)
    return _pick(uniform, words.PETS), _pick(uniform, words.PET_NAMES), _pick(uniform, words.TOWNS), year


def _hobby(uniform: Uniform, person: Person) -> tuple[str, ...]:
    return _pick(uniform, words.PASTIMES), _pick(uniform, words.VENUES), _pick(uniform, words.DAYS)


def _savings(uniform: Uniform, person: Person) -> tuple[str, ...]:
    account = 100000 + int(uniform() * 900000)
    return f"{1000 + int(uniform() * 79000):,}", f"{account // 1000}-{account % 1000:03}", _pick(uniform, words.BANKS)


def _allergy(uniform: Uniform, person: Person) -> tuple[str, ...]:
    date = _date(uniform, person.birth_year + 3, _LAST_YEAR)
    return _pick(uniform, words.ALLERGENS), _pick(uniform, _DOCTORS), date


# Draws the values of a fact for a person; also used for wrong answers.
DRAW: dict[str, Callable[[Uniform, Person], tuple[str, ...]]] = {
    "birth": _birth,
    "address": _address,
    "work": _work,
    "library_card": _library_card,
    "family": _family,
    "education": _education,
    "award": _award,
    "vehicle": _vehicle,
    "pet": _pet,
    "hobby": _hobby,
    "savings": _savings,
    "allergy": _allergy,
}
