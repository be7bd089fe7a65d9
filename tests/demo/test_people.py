"""Test the fictitious people: no duplicates, reproducible values, and rows with unambiguous answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from string import Formatter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.demo import people as fictitious_people
from llm_forget.demo.splits import (
    CAPACITY,
    KINDS,
    WRONG_ANSWERS,
    Person,
    people,
    rows,
)
from llm_forget.demo.wordings import WORDINGS
from llm_forget.demo.words import ALLERGENS, CARS, CULTURES, JOBS, PETS, with_article
from llm_forget.errors import DataError

PRONOUNS = {
    "f": {"She": "She", "she": "she", "Her": "Her", "her": "her", "him": "her"},
    "m": {"She": "He", "she": "he", "Her": "His", "her": "his", "him": "him"},
}
TEXTS = ("question", "answer", "paraphrased_question", "paraphrased_answer")


@cache
def some_people() -> tuple[Person, ...]:
    return tuple(people(400, seed=5))


def all_rows() -> list[tuple[Person, tuple[str, ...], dict[str, Any]]]:
    """Return each person with the values of a fact and its row."""
    return [
        (person, fact.values, row)
        for person in some_people()
        for fact, row in zip(person.facts, rows(person, seed=5), strict=True)
    ]


def texts_of(row: dict[str, Any]) -> list[str]:
    return [*(row[name] for name in TEXTS), *row["perturbed_answer"]]


@cache
def patterns(kind: str, gender: str) -> list[re.Pattern[str]]:
    """Return the answer wordings of a kind as patterns with one group per slot, without using the code under test."""
    found = []
    for template in WORDINGS[kind].answers:
        pattern = ""
        for literal, field, _, _ in Formatter().parse(template):
            pattern += re.escape(literal)
            if field is not None:
                # A relation may have two words; the name of the relative after it has one.
                value = "[A-Z][a-z]+" if field == "relative" else ".+?"
                pattern += PRONOUNS[gender].get(field, f"(?P<{field}>{value})")
        found.append(re.compile(pattern))
    return found


def parsed(kind: str, gender: str, answer: str) -> list[dict[str, str] | None]:
    """Return the values in an answer under each wording; None for wordings that do not match."""
    return [match.groupdict() if (match := p.fullmatch(answer)) else None for p in patterns(kind, gender)]


# People


def test_a_person_does_not_depend_on_the_others() -> None:
    many = people(60, seed=3)
    assert people(7, seed=3) == many[:7]
    assert people(5, seed=3, start=40) == many[40:45]
    assert [person.facts for person in people(5, seed=3, start=40)] == [person.facts for person in many[40:45]]
    assert people(0, seed=3) == []


def test_seeds_give_different_people() -> None:
    worlds = [{person.name for person in people(200, seed)} for seed in (0, 1, -1)]
    # 600 out of a million names: a few may coincide by chance; an ignored seed would give 200.
    assert all(len(a & b) < 10 for a, b in ((worlds[0], worlds[1]), (worlds[0], worlds[2]), (worlds[1], worlds[2])))


def test_every_process_generates_the_same_rows() -> None:
    code = (
        "import hashlib, json; from llm_forget.demo.splits import people, rows;"
        "print(hashlib.sha256(json.dumps([rows(p, 2) for p in people(20, 9)]).encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1]


def test_20000_people_share_no_name_and_no_address() -> None:
    made = people(20_000, seed=11)
    assert len({person.name for person in made}) == len(made)
    assert all(len(set(person.name.split())) == len(person.name.split()) for person in made)
    houses = {fictitious_people._house(fictitious_people._permuted(person.index, "houses/11")) for person in made}
    assert len(houses) == len(made)
    assert made[17].value("address", "house") in houses


def test_the_names_of_a_culture_are_unique() -> None:
    for culture in (0, min(range(len(CULTURES)), key=lambda at: len(CULTURES[at].families))):
        places = range(culture, CAPACITY, len(CULTURES))
        assert len({fictitious_people._name(place)[1] for place in places}) == len(places)


def test_cultures_share_no_family_names_and_have_no_duplicates() -> None:
    families = Counter(family for culture in CULTURES for family in culture.families)
    assert [family for family, times in families.items() if times > 1] == []
    for culture in CULTURES:
        given_names = [*culture.women, *culture.men]
        assert len(set(given_names)) == len(given_names)
        assert all(" " not in name for name in (*given_names, *culture.families))


@given(st.lists(st.integers(0, CAPACITY - 1), unique=True, min_size=2, max_size=50), st.integers())
@settings(max_examples=30, deadline=None)
def test_the_permutation_is_injective(indices: list[int], seed: int) -> None:
    places = [fictitious_people._permuted(index, f"x/{seed}") for index in indices]
    assert len(set(places)) == len(places)
    assert all(0 <= place < CAPACITY for place in places)


def test_cultures_and_genders_are_balanced() -> None:
    made = people(3200, seed=4)
    cultures = Counter(person.culture for person in made)
    # 200 each are expected, with a standard deviation of 14.
    assert len(cultures) == len(CULTURES)
    assert all(130 < times < 270 for times in cultures.values())
    assert 1400 < sum(person.gender == "f" for person in made) < 1800


def test_events_of_a_life_are_in_order() -> None:
    for person in some_people():
        born = int(person.value("birth", "date")[-4:])
        assert born == person.birth_year
        assert born + 20 <= int(person.value("education", "year")) <= 2023
        assert born + 20 <= int(person.value("work", "year")) <= 2023
        assert born < int(person.value("allergy", "date")[-4:]) <= 2023
        assert person.value("family", "relative") != person.given


@pytest.mark.parametrize(("count", "start"), [(-1, 0), (1, -1), (1, CAPACITY), (CAPACITY + 1, 0)])
def test_numbers_of_people_out_of_range_are_refused(count: int, start: int) -> None:
    with pytest.raises(DataError, match=str(CAPACITY)):
        people(count, seed=0, start=start)


def test_the_last_person_can_be_generated() -> None:
    assert people(1, seed=0, start=CAPACITY - 1)[0].index == CAPACITY - 1


# Rows


def test_every_field_is_present_and_not_empty() -> None:
    for person, _, row in all_rows():
        assert set(row) == {*TEXTS, "perturbed_answer", "subject", "kind"}
        assert row["subject"] == person.name
        assert len(row["perturbed_answer"]) == WRONG_ANSWERS
        for text in texts_of(row):
            assert text == text.strip()
            assert not set(text) & set("{}[]<>_")
            assert "  " not in text
            assert text[0].isupper() or text[0].isdigit()
            assert text.isascii()
        assert [row[name][-1] for name in TEXTS] == ["?", ".", "?", "."]
    assert [row["kind"] for row in rows(some_people()[0], seed=5)] == list(KINDS)


def test_a_question_names_the_person_and_the_answer_does_not() -> None:
    for person, values, row in all_rows():
        assert person.name in row["question"]
        assert person.name in row["paraphrased_question"]
        assert row["question"] != row["paraphrased_question"]
        assert person.name not in row["answer"]
        assert not [value for value in values if value in row["question"].replace(person.name, "")]


def test_both_wordings_hold_all_true_values() -> None:
    for person, values, row in all_rows():
        assert row["answer"] != row["paraphrased_answer"]
        truth = dict(zip(WORDINGS[row["kind"]].slots, values, strict=True))
        for name in ("answer", "paraphrased_answer"):
            assert truth in parsed(row["kind"], person.gender, row[name]), row[name]


def test_wrong_answers_have_the_form_of_the_paraphrase_and_no_true_value() -> None:
    for person, values, row in all_rows():
        truth = dict(zip(WORDINGS[row["kind"]].slots, values, strict=True))
        form = parsed(row["kind"], person.gender, row["paraphrased_answer"]).index(truth)
        wrong = row["perturbed_answer"]
        assert len({*wrong, row["answer"], row["paraphrased_answer"]}) == len(wrong) + 2
        for answer in wrong:
            claimed = parsed(row["kind"], person.gender, answer)[form]
            assert claimed is not None, answer
            assert not [slot for slot, value in claimed.items() if value == truth[slot]], (answer, truth)


def test_answers_are_short() -> None:
    lengths = Counter(len(row[name].split()) for _, _, row in all_rows() for name in ("answer", "paraphrased_answer"))
    assert min(lengths) >= 7
    assert max(lengths) <= 21
    assert 9 < sum(length * times for length, times in lengths.items()) / lengths.total() < 15


def test_articles_follow_the_sound() -> None:
    sounds_like_consonant = r"(?:uni|eu|one-|one\b|use)"
    a_before_vowel = re.compile(rf"\b[Aa] (?!{sounds_like_consonant})(?:[aeiou]|hour|heir|honest)", re.ASCII)
    an_before_consonant = re.compile(
        rf"\b[Aa]n (?:(?!hour|heir|honest)[^aeiouAEIOU]|{sounds_like_consonant})", re.ASCII
    )
    for text in [*JOBS, *PETS, *CARS, *(text for _, _, row in all_rows() for text in texts_of(row))]:
        assert not a_before_vowel.search(text), text
        assert not an_before_consonant.search(text), text
    assert with_article("engineer") == "an engineer"
    assert with_article("union clerk") == "a union clerk"
    assert with_article("hourglass maker") == "an hourglass maker"
    assert with_article("one-eyed goose") == "a one-eyed goose"
    assert with_article("uncle") == "an uncle"
    assert all(entry.startswith(("a ", "an ")) for entry in (*JOBS, *PETS, *CARS))


def test_pronouns_match_the_person() -> None:
    female, male = re.compile(r"\b[Ss]he\b|\b[Hh]ers?\b"), re.compile(r"\b[Hh]e\b|\b[Hh]is\b|\bhim\b")
    seen: Counter[str] = Counter()
    for person, _, row in all_rows():
        for text in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            own, other = (female, male) if person.gender == "f" else (male, female)
            assert not other.search(text), text
            seen[person.gender] += bool(own.search(text))
    assert min(seen["f"], seen["m"]) > 1000


@pytest.mark.slow
def test_rows_vary_in_wording() -> None:
    for kind, wording in WORDINGS.items():
        asked: set[str] = set()
        told: set[int] = set()
        for person, _, row in all_rows():
            if row["kind"] == kind:
                asked.add(row["question"].replace(person.name, "NAME"))
                told |= {at for at, found in enumerate(parsed(kind, person.gender, row["answer"])) if found}
        assert len(asked) == len(set(wording.questions)) >= 4
        assert len(told) == len(set(wording.answers)) >= 4


def test_wordings_use_every_slot_and_nothing_else() -> None:
    for wording in WORDINGS.values():
        for template in wording.answers:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
            assert Counter(f for f in fields if f in wording.slots) == Counter(wording.slots)
            assert set(fields) <= {*wording.slots, *PRONOUNS["f"]}
        for template in wording.questions:
            assert {field for _, field, _, _ in Formatter().parse(template) if field is not None} == {"name"}


def test_each_pair_of_allergens_has_one_name() -> None:
    assert len({frozenset(pair.split(" and ")) for pair in ALLERGENS}) == len(ALLERGENS)


def test_another_seed_words_the_same_facts_differently() -> None:
    person = some_people()[0]
    one, other = rows(person, seed=1), rows(person, seed=2)
    assert rows(person, seed=1) == one
    assert one != other
    for a, b in zip(one, other, strict=True):
        truths = [
            [found for found in parsed(str(row["kind"]), person.gender, str(row["answer"])) if found] for row in (a, b)
        ]
        assert any(found in truths[1] for found in truths[0])


def test_partly_true_or_repeated_values_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    person = some_people()[0]
    pastime, venue, day = person.facts[KINDS.index("hobby")].values
    others = [(f"collecting {n}", f"Hall {n}", f"{n}day") for n in ("one", "two", "three", "four")]
    # The first is the truth; the next two are partly true.
    draws = iter([(pastime, venue, day), ("collecting", venue, "Noday"), (pastime, "Hall", "Noday"), *others[:1] * 3])
    rest = iter(others[1:])
    monkeypatch.setitem(fictitious_people.DRAW, "hobby", lambda *_: next(draws, None) or next(rest))
    row = next(row for row in rows(person, seed=5) if row["kind"] == "hobby")
    wrong = row["perturbed_answer"]
    assert isinstance(wrong, list)
    for answer, (other, hall, other_day) in zip(wrong, others, strict=True):
        assert other in answer
        assert hall in answer
        assert other_day in answer


# Scale


def test_a_row_needs_few_draws_and_a_person_none(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[str] = Counter()

    def counted(kind: str, draw: Any) -> Any:
        def count(*given: Any) -> tuple[str, ...]:
            drawn[kind] += 1
            return draw(*given)  # type: ignore[no-any-return]

        return count

    for kind, draw in list(fictitious_people.DRAW.items()):
        monkeypatch.setitem(fictitious_people.DRAW, kind, counted(kind, draw))

    made = people(300, seed=8, start=CAPACITY - 300)
    assert drawn.total() == 0
    for person in made:
        rows(person, seed=8)
    # One draw for the truth, one for each wrong answer, and a few repeats that were true by chance.
    assert set(drawn) == set(KINDS)
    assert all(1 + WRONG_ANSWERS <= times / 300 < 1.5 * (1 + WRONG_ANSWERS) for times in drawn.values())
