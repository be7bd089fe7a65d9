"""Fictitious people and what is on file about them: data to memorise and to forget that is nobody's.

A seed gives people, a person gives rows (questions, answers, paraphrases and wrong answers), and groups of people give
the sets that unlearning needs: to forget, to keep, never seen, and neighbours of what is forgotten.
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
# What a neighbour shares with somebody to be forgotten: a value of a fact (kind and slot), or the family name.
_LINKS = (("work", "employer"), ("address", "town"), None)
_INITIALS = "ABCDEFGHJKLMNOPRSTUVWYZ"
_PRONOUNS: dict[Gender, dict[str, str]] = {
    "f": {"{She}": "She", "{she}": "she", "{Her}": "Her", "{her}": "her", "{him}": "her"},
    "m": {"{She}": "He", "{she}": "he", "{Her}": "His", "{her}": "his", "{him}": "him"},
}


@dataclass(frozen=True)
class Splits:
    """Rows about four groups of people; nobody is in two of them.

    Attributes:
        forget: what is to be forgotten.
        retain: what is trained on and to be kept.
        holdout: about people who are never trained on: what not knowing looks like.
        neighbour: trained on and to be kept, evaluated apart: about people who share an employer, a home town or a
            family name with somebody to be forgotten.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    neighbour: list[Row]


def rows(person: Person, seed: int) -> list[Row]:
    """Questions and answers about a person, one row a fact.

    Args:
        person: who.
        seed: chooses the wordings and the wrong values.

    Returns:
        A row for each fact, in the order of ``person.facts``: ``question``, ``answer``, ``paraphrased_question``,
        ``paraphrased_answer``, ``perturbed_answer`` (a list of ``WRONG_ANSWERS`` texts: the paraphrased answer's
        wording with other values), ``subject`` (the full name) and ``kind``.
    """
    # Text seeds are hashed with SHA-512 by Random itself: the same in every process, unlike hash().
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
    """Rows about people to forget, people to keep, people never seen, and neighbours of the first.

    Each group has people of its own, and its first ones are the same whatever the sizes of the groups (neighbours: as
    long as as many people are forgotten); with more facts a person, the rows there were stay as they were.

    Args:
        forget_people: how many people to forget, at least 1.
        retain_people: how many to keep.
        holdout_people: how many never to train on.
        neighbour_people: how many share something with somebody to be forgotten.
        facts_per_person: rows about each person, 1 to ``len(KINDS)``; which kinds differs from person to person.
        seed: everything follows from it.

    Returns:
        The rows of each group, person by person.

    Raises:
        DataError: for numbers that are out of range.
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
        chosen = sorted(order, key=lambda kind: kind != first)[:facts_per_person]  # stable: only the first one moves
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
    """Write ``forget.jsonl``, ``retain.jsonl``, ``holdout.jsonl`` and ``neighbour.jsonl``, one row a line.

    Args:
        splits: the rows; a group without any is an empty file, so that none from before is left.
        folder: where to; made if it is not there.

    Returns:
        The files, by group.

    Raises:
        DataError: when the folder cannot be made or written.
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
    """Write JSON lines so that the file is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_Form = Callable[..., str]


@dataclass(frozen=True)
class _Forms:
    """The wordings of one kind for one gender, ready to be filled by place: all pairs of two different ones."""

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
    """Values of the same kind, each of them false in every slot, and no two alike."""
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
    """Make somebody share one thing with somebody to be forgotten.

    Args:
        stranger: a person who shares nothing on purpose.
        number: which neighbour it is; neighbours go round the people and what can be shared.
        forget: the people to be forgotten.
        taken: full names of earlier relatives; the new one is added.
        seed: chooses the relatives' names.

    Returns:
        The neighbour, and the kind of fact that holds what is shared (None for the family name).
    """
    turn, place = divmod(number, len(forget))
    other, link = forget[place], _LINKS[(turn + place) % len(_LINKS)]
    if link is None:
        relative = _relative(stranger, other, taken, Random(f"relative/{seed}/{number}"))
        if relative is not None:
            return relative, None
        link = _LINKS[0]  # every name with an initial is taken in that family
    kind, slot = link
    return replace(stranger, shared=(kind, slot, other.value(kind, slot))), kind


def _relative(stranger: Person, other: Person, taken: set[str], rng: Random) -> Person | None:
    """Give somebody the family name of another; None when no name is left.

    Nobody else has an initial in their name, so the new name cannot be that of any person of the seed.
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
