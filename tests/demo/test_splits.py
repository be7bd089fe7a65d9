"""Test the groups of fictitious people: disjoint groups, neighbours who share one property, and files written atomically."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from llm_forget.data.examples import DataSource, Message, read_examples
from llm_forget.demo import splits as fictitious
from llm_forget.demo.splits import KINDS, SPLIT_CAPACITY, Splits, make_splits, people, write_splits
from llm_forget.demo.words import CULTURES
from llm_forget.errors import DataError


def splits_of(**changes: int) -> Splits:
    numbers = {
        "forget_people": 6,
        "retain_people": 9,
        "holdout_people": 5,
        "neighbour_people": 18,
        "facts_per_person": 4,
        "seed": 21,
    }
    return make_splits(**{**numbers, **changes})


def subjects(split: list[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(str(row["subject"]) for row in split))


def test_groups_have_the_requested_sizes_and_are_disjoint() -> None:
    splits = splits_of()
    groups = [splits.forget, splits.retain, splits.holdout, splits.neighbour]
    assert [len(group) for group in groups] == [24, 36, 20, 72]
    assert [len(subjects(group)) for group in groups] == [6, 9, 5, 18]
    names = [name for group in groups for name in subjects(group)]
    assert len(set(names)) == len(names)
    for group in groups:
        kinds = Counter((row["subject"], row["kind"]) for row in group)
        assert set(kinds.values()) == {1}


def test_larger_groups_keep_the_existing_rows() -> None:
    small = splits_of()
    assert splits_of() == small
    assert splits_of(retain_people=30, holdout_people=0, neighbour_people=0).forget == small.forget
    assert splits_of(forget_people=20).retain == small.retain
    assert splits_of(retain_people=30).retain[:36] == small.retain
    assert splits_of(neighbour_people=30).neighbour[:72] == small.neighbour
    assert splits_of(seed=22).forget != small.forget


@pytest.mark.parametrize("name", ["forget", "retain", "holdout", "neighbour"])
def test_more_facts_keep_the_existing_rows(name: str) -> None:
    more = getattr(splits_of(facts_per_person=7), name)
    assert all(row in more for row in getattr(splits_of(), name))
    everything = getattr(splits_of(facts_per_person=len(KINDS)), name)
    assert Counter(row["kind"] for row in everything) == dict.fromkeys(KINDS, len(subjects(everything)))


def test_the_selected_facts_vary_between_people() -> None:
    kinds = Counter(row["kind"] for row in splits_of(forget_people=120).forget)
    # 40 each are expected, with a standard deviation of 5.
    assert len(kinds) == len(KINDS)
    assert min(kinds.values()) > 15


def test_neighbours_share_one_property_and_no_answer() -> None:
    splits = splits_of(facts_per_person=2)
    forget = people(6, seed=21)
    assert subjects(splits.forget) == [person.name for person in forget]
    employers = {person.value("work", "employer") for person in forget}
    towns = {person.value("address", "town") for person in forget}
    families = {person.family for person in forget}

    shared: Counter[str] = Counter()
    for name in subjects(splits.neighbour):
        answers = {row["kind"]: str(row["answer"]) for row in splits.neighbour if row["subject"] == name}
        if re.fullmatch(r"[A-Za-z]+ [A-Z]\. [A-Za-z]+", name):
            assert name.split()[-1] in families
            shared["family"] += 1
        elif any(employer in answers.get("work", "") for employer in employers):
            shared["employer"] += 1
        elif any(town in answers.get("address", "") for town in towns):
            shared["town"] += 1
    assert shared == {"family": 6, "employer": 6, "town": 6}
    assert not {row["answer"] for row in splits.neighbour} & {row["answer"] for row in splits.forget}


def test_neighbours_of_one_person_never_run_out_of_names() -> None:
    splits = splits_of(forget_people=1, neighbour_people=3_000, facts_per_person=1)
    names = [str(row["subject"]) for row in splits.neighbour]
    assert len(set(names)) == 3_000
    assert 500 < sum(". " in name for name in names) <= 1_000


def test_a_family_without_free_names_gives_no_more_people() -> None:
    other, stranger = people(2, seed=0)
    culture = CULTURES[other.culture]
    taken = {f"{g} {i}. {other.family}" for g in (*culture.women, *culture.men) for i in fictitious._INITIALS}
    relative, link = fictitious._neighbour(stranger, 2, [other], taken, seed=0)
    assert link == "work"
    assert relative.name == stranger.name
    assert relative.value("work", "employer") == other.value("work", "employer")


def test_the_kinds_of_neighbours_alternate_for_each_person() -> None:
    for forgotten in (1, 2, 3, 5):
        forget = people(forgotten, seed=2)
        strangers = people(3 * forgotten, seed=2, start=500)
        links = [fictitious._neighbour(s, n, forget, set(), seed=2)[1] for n, s in enumerate(strangers)]
        for place in range(forgotten):
            assert {links[place + turn * forgotten] for turn in range(3)} == {"work", "address", None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget_people": 0}, "forget_people is 0; allowed are 1"),
        ({"retain_people": -1}, "retain_people is -1; allowed are 0"),
        ({"holdout_people": SPLIT_CAPACITY + 1}, f"allowed are 0 to {SPLIT_CAPACITY}"),
        ({"neighbour_people": -3}, "neighbour_people is -3"),
        ({"facts_per_person": 0}, f"facts_per_person is 0; allowed are 1 to {len(KINDS)}"),
        ({"facts_per_person": len(KINDS) + 1}, "birth, address"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        splits_of(**changes)


def test_files_are_read_by_the_reader_of_examples(tmp_path: Path) -> None:
    splits = splits_of()
    files = write_splits(splits, tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "forget.jsonl",
        "retain.jsonl",
        "holdout.jsonl",
        "neighbour.jsonl",
    }
    examples = read_examples(DataSource(path=str(files["forget"])))
    assert len(examples) == len(splits.forget)
    for example, row in zip(examples, splits.forget, strict=True):
        assert example.prompt == (Message("user", str(row["question"])),)
        assert example.answer == row["answer"]
        assert example.paraphrases == (row["paraphrased_answer"],)
        assert list(example.wrong_answers) == row["perturbed_answer"]
    for name in ("retain", "holdout", "neighbour"):
        assert [json.loads(line) for line in files[name].read_text().splitlines()] == getattr(splits, name)


def test_an_empty_group_removes_its_previous_file(tmp_path: Path) -> None:
    write_splits(splits_of(), tmp_path)
    write_splits(splits_of(neighbour_people=0), tmp_path)
    assert (tmp_path / "neighbour.jsonl").read_text() == ""


def test_a_file_is_written_atomically(tmp_path: Path) -> None:
    write_splits(splits_of(), tmp_path)
    before = (tmp_path / "forget.jsonl").read_bytes()
    broken = Splits(forget=[{"question": "Who?"}, {"question": object()}], retain=[], holdout=[], neighbour=[])
    with pytest.raises(TypeError):
        write_splits(broken, tmp_path)
    assert (tmp_path / "forget.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="give a folder that can"):
        write_splits(splits_of(), tmp_path / "taken")
