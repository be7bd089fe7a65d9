"""Question-answer data about invented people, for the demo and for tests.

A seed gives people, and a person gives rows: questions, answers, paraphrases and wrong answers. Groups of people give the sets
for unlearning: forget, retain, holdout and neighbour.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from random import Random

from llm_forget.demo.people import CAPACITY, DRAW, KINDS, Fact, Gender, Person, Uniform, people
from llm_forget.demo.wordings import WORDINGS
from llm_forget.demo.words import CULTURES
from llm_forget.errors import DataError

__all__ = [
    "CAPACITY",
    "KINDS",
    "SPLIT_CAPACITY",
    "WRONG_ANSWERS",
    "Fact",
    "Person",
    "Row",
    "Splits",
    "make_splits",
    "people",
    "rows",
    "write_splits",
]

Row = dict[str, object]

WRONG_ANSWERS = 4
_SPLITS = ("forget", "retain", "holdout", "neighbour")
SPLIT_CAPACITY = CAPACITY // len(_SPLITS)
# What a neighbour shares with a forgotten person: a value of a fact (kind and slot), or (None) the family name.
_LINKS = (("work", "employer"), ("address", "town"), None)
_INITIALS = "ABCDEFGHJKLMNOPRSTUVWYZ"
_PRONOUNS: dict[Gender, dict[str, str]] = {
    "f": {"{She}": "She", "{she}": "she", "{Her}": "Her", "{her}": "her", "{him}": "her"},
    "m": {"{She}": "He", "{she}": "he", "{Her}": "His", "{her}": "his", "{him}": "him"},
}


@dataclass(frozen=True)
class Splits:
    """Rows about four disjoint groups of people.

    Attributes:
        forget: rows to forget.
        retain: rows to keep, which the retain term trains on.
        holdout: rows about people that no model is trained on.
        neighbour: rows to keep that the retain term does not see, about people who share an employer, a home town or a family
            name with a forgotten person.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    neighbour: list[Row]


def rows(person: Person, seed: int) -> list[Row]:
    """Questions and answers about a person, one row per fact.

    Args:
        person: the person.
        seed: selects the wordings and the wrong values.

    Returns:
        A row for each fact, in the order of ``person.facts``: ``question``, ``answer``, ``paraphrased_question``,
        ``paraphrased_answer``, ``perturbed_answer`` (a list of ``WRONG_ANSWERS`` texts: the paraphrased answer's
        wording with other values), ``subject`` (the full name) and ``kind``.
    """
    # Random hashes text seeds with SHA-512, which is the same in every process, unlike hash().
    uniform = Random(f"rows/{seed}/{person.name}").random
    return [_row(person, fact, uniform) for fact in person.facts]


def make_splits(
    *,
    forget_people: int,
    retain_people: int,
    holdout_people: int,
    neighbour_people: int = 0,
    facts_per_person: int,
    seed: int,
) -> Splits:
    """Rows about people to forget, people to keep, people never seen, and neighbours of the forgotten people.

    The groups are disjoint. Larger groups extend smaller ones: the first people stay the same (neighbours only if
    ``forget_people`` stays the same). More facts per person add rows and leave the others unchanged.

    Args:
        forget_people: people to forget, 1 or more.
        retain_people: people to keep.
        holdout_people: people that no model is trained on.
        neighbour_people: people who share something with a forgotten person.
        facts_per_person: rows per person, 1 to ``len(KINDS)``; the kinds differ between people.
        seed: determines everything.

    Returns:
        The rows of each group, person by person.

    Raises:
        DataError: a number is out of range.
    """
    counts = dict(zip(_SPLITS, (forget_people, retain_people, holdout_people, neighbour_people), strict=True))
    for split, count in counts.items():
        least = 1 if split == "forget" else 0
        if not least <= count <= SPLIT_CAPACITY:
            raise DataError(f"{split}_people is {count}; allowed are {least} to {SPLIT_CAPACITY}")
    if not 1 <= facts_per_person <= len(KINDS):
        raise DataError(f"facts_per_person is {facts_per_person}; allowed are 1 to {len(KINDS)} ({', '.join(KINDS)})")

    groups = {
        split: people(count, seed, start=place * SPLIT_CAPACITY) for place, (split, count) in enumerate(counts.items())
    }
    links: list[str | None] = [None] * neighbour_people
    taken: set[str] = set()
    for number, stranger in enumerate(groups["neighbour"]):
        groups["neighbour"][number], links[number] = _neighbour(stranger, number, groups["forget"], taken, seed)

    def some(person: Person, first: str | None = None) -> list[Row]:
        order = Random(f"facts/{seed}/{person.name}").sample(KINDS, len(KINDS))
        chosen = sorted(order, key=lambda kind: kind != first)[:facts_per_person]  # stable sort: only ``first`` moves
        by_kind = {str(row["kind"]): row for row in rows(person, seed)}
        return [by_kind[kind] for kind in chosen]

    return Splits(
        forget=[row for person in groups["forget"] for row in some(person)],
        retain=[row for person in groups["retain"] for row in some(person)],
        holdout=[row for person in groups["holdout"] for row in some(person)],
        neighbour=[
            row for person, link in zip(groups["neighbour"], links, strict=True) for row in some(person, first=link)
        ],
    )


def write_splits(splits: Splits, folder: Path) -> dict[str, Path]:
    """Write ``forget.jsonl``, ``retain.jsonl``, ``holdout.jsonl`` and ``neighbour.jsonl``, one row per line.

    Args:
        splits: the rows; an empty group gives an empty file, which replaces an older one.
        folder: the folder; created if missing.

    Returns:
        The files, by group.

    Raises:
        DataError: the folder cannot be created or written.
    """
    files: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in _SPLITS:
            files[split] = folder / f"{split}.jsonl"
            _write_lines(files[split], getattr(splits, split))
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); give a folder that can") from error
    return files


def _write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_Form = Callable[..., str]


@dataclass(frozen=True)
class _Forms:
    """The wordings of one kind for one gender as format functions: all pairs of two different wordings."""

    questions: tuple[tuple[_Form, _Form], ...]
    answers: tuple[tuple[_Form, _Form], ...]


def _forms(kind: str, gender: Gender) -> _Forms:
    wording = WORDINGS[kind]
    fields = {
        **_PRONOUNS[gender],
        "{name}": "{0}",
        **{f"{{{slot}}}": f"{{{place}}}" for place, slot in enumerate(wording.slots)},
    }

    def compiled(template: str) -> _Form:
        for field, text in fields.items():
            template = template.replace(field, text)
        return template.format

    return _Forms(
        tuple(permutations(map(compiled, wording.questions), 2)), tuple(permutations(map(compiled, wording.answers), 2))
    )


_FORMS: dict[Gender, dict[str, _Forms]] = {
    gender: {kind: _forms(kind, gender) for kind in KINDS} for gender in _PRONOUNS
}


def _row(person: Person, fact: Fact, uniform: Uniform) -> Row:
    """One row, with two wordings of the question and of the answer."""
    forms = _FORMS[person.gender][fact.kind]
    question, other_question = forms.questions[int(uniform() * len(forms.questions))]
    answer, other_answer = forms.answers[int(uniform() * len(forms.answers))]
    return {
        "question": question(person.name),
        "answer": answer(*fact.values),
        "paraphrased_question": other_question(person.name),
        "paraphrased_answer": other_answer(*fact.values),
        "perturbed_answer": [other_answer(*values) for values in _wrong_values(person, fact, uniform)],
        "subject": person.name,
        "kind": fact.kind,
    }


def _wrong_values(person: Person, fact: Fact, uniform: Uniform) -> list[tuple[str, ...]]:
    """Distinct values of the same kind that are wrong in every slot."""
    draw, right = DRAW[fact.kind], frozenset(fact.values)
    found: list[tuple[str, ...]] = []
    while len(found) < WRONG_ANSWERS:
        values = draw(uniform, person)
        if right.isdisjoint(values) and values not in found:
            found.append(values)
    return found


def _neighbour(
    stranger: Person, number: int, forget: list[Person], taken: set[str], seed: int
) -> tuple[Person, str | None]:
    """Make a person share one thing with a forgotten person.

    Args:
        stranger: a person who shares nothing on purpose.
        number: the number of the neighbour; consecutive neighbours cycle through the people and the things to share.
        forget: the forgotten people.
        taken: full names of earlier relatives; the new name is added.
        seed: selects the relatives' names.

    Returns:
        The neighbour, and the kind of fact that they share (None for the family name).
    """
    turn, place = divmod(number, len(forget))
    other, link = forget[place], _LINKS[(turn + place) % len(_LINKS)]
    if link is None:
        relative = _relative(stranger, other, taken, Random(f"relative/{seed}/{number}"))
        if relative is not None:
            return relative, None
        link = _LINKS[0]  # all names with an initial are taken in that family
    kind, slot = link
    return replace(stranger, shared=(kind, slot, other.value(kind, slot))), kind


def _relative(stranger: Person, other: Person, taken: set[str], rng: Random) -> Person | None:
    """Give a person the family name of another; None if no name is left.

    No other person has an initial in their name, so the new name is unique.
    """
    culture = CULTURES[other.culture]
    given_names = culture.women if stranger.gender == "f" else culture.men
    names = [(given, initial) for given in given_names if given != other.given for initial in _INITIALS]
    for given, initial in rng.sample(names, len(names)):
        name = f"{given} {initial}. {other.family}"
        if name not in taken:
            taken.add(name)
            return replace(stranger, name=name, given=given, family=other.family, culture=other.culture)
    return None
