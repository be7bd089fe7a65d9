"""Each stage over rows made by hand: what it finds, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extras import needs

from llm_forget.data.encode import EncodingConfig
from llm_forget.find import Corpus, Found, Model, Search, find_rows
from llm_forget.find.hidden import text_vectors
from llm_forget.find.query import Query
from llm_forget.find.spans import Casing, spans
from llm_forget.find.stages.identifiers import has_checksum, identifiers_in, same_identifier
from llm_forget.find.stages.paraphrases import Paraphrases
from llm_forget.testing import tiny_model, tiny_tokenizer

pytestmark = needs("rapidfuzz")

OTHERS = [f"Mara Quist{one} was born in Ulm and sells {thing}." for one in "abc" for thing in ("hats", "tea", "rope")]


def search(
    folder: Path, texts: Sequence[str | dict[str, Any]], **query: Any
) -> tuple[Found, dict[int, tuple[str, ...]]]:
    """Search rows; also return line → reasons for the rows with the proposal keep."""
    path = folder / "rows.jsonl"
    rows = [{"text": one} if isinstance(one, str) else one for one in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = find_rows(path, **query)
    return found, {hit.line: hit.reasons for hit in found.kept()}


def test_bm25_agrees_with_bm25s(tmp_path: Path) -> None:
    """bm25s is the reference for the scores; its index is built row by row, ours at once."""
    bm25s = pytest.importorskip("bm25s")
    texts = ["a b b c", "b c d d d e", "a", "e f g a a b"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    reference = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    reference.index([one.split() for one in texts], show_progress=False)
    assert Corpus.read([path]).bm25("b d x a") == pytest.approx(reference.get_scores(["b", "d", "a"]), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ms ADA LOVELACE, of Bath.", "name"),
        ("Lovelace, Ada: see notes.", "name"),
        ("We met Ada Lovelave in Bath.", "misspelt name"),
        ("We met Ada Lovélace in Bath.", "name"),
        ("Ада Лавлейс и Ада Ловелаце.", "name in another script"),
        ("The machine of Lovelace was never built.", "part of the name"),
        ("A letter by A. Lovelace was found.", "part of the name"),
        ("The Countess of Bath wrote it.", "alias"),
        ("Write to ada@example.org for more.", "address"),
        ("Call 0044 1225 477 000 after six.", "identifier"),
    ],
)
def test_ways_to_write_a_person(tmp_path: Path, text: str, reason: str) -> None:
    query = {"alias": "Countess of Bath", "email": "Ada@Example.org", "identifier": "+44 (1225) 477000"}
    rows = [*OTHERS, "Ada Lovelace wrote notes on an engine.", "Ada Lovelace lived long ago.", text]
    _, kept = search(tmp_path, rows, person="Ada Lovelace", **query)
    assert set(kept) == {10, 11, 12}
    assert reason in kept[12]


def test_similar_names_of_other_people_are_not_proposed(tmp_path: Path) -> None:
    """Maria and Mario Garza lead rows of their own, so neither is a spelling of the other."""
    rows = [
        f"{name} Garza {what}."
        for name in ("Maria", "Mario")
        for what in ("sells hats", "lives in Ulm", "is a cook", "sings")
    ]
    _, kept = search(tmp_path, [*OTHERS, *rows], person="Maria Garza")
    assert set(kept) == {10, 11, 12, 13}


def test_other_middle_names_are_other_people(tmp_path: Path) -> None:
    rows = ["So says Ada Byron Lovelace.", *OTHERS, "Ada King Lovelace sells hats.", "We met Ada Lovelace."]
    found, kept = search(tmp_path, rows, person="Ada King Lovelace")
    assert set(kept) == {11}
    assert 12 in {hit.line for hit in found.hits if hit.decision == "unsure"}  # it may be either
    _, kept = search(tmp_path, rows, person="Ada Lovelace")
    assert set(kept) == {1, 11, 12}


@pytest.mark.parametrize(
    ("longer", "kept"),
    [
        (["Ramouni", "Karahin"], {1, 2, 3}),
        (["Ramouni"], set(range(1, 8))),
        (["Ramouni", "Ramouni Sr."], set(range(1, 12))),
    ],
)
def test_a_name_inside_several_longer_ones_is_other_people(tmp_path: Path, longer: list[str], kept: set[int]) -> None:
    """A single longer name may be the same person's full name."""
    facts = ("was born in Ulm.", "sells old hats.", "keeps two bees.", "walks to Bern.")
    rows = [f"Amal Ramadi {fact}" for fact in facts[:3]]
    rows += [f"Amal Ramadi {name} {fact}" for name in longer for fact in facts]
    assert set(search(tmp_path, rows, person="Amal Ramadi")[1]) == kept


@pytest.mark.parametrize(
    ("name", "kept"), [("Ada K. Lovelace", {1, 2, 3}), ("Ada King Lovelace", {1, 2}), ("Ada Joan Lovelace", {4})]
)
def test_a_middle_name_and_its_initial_are_the_same(tmp_path: Path, name: str, kept: set[int]) -> None:
    rows = ["Ada King Lovelace", "Ada K. Lovelace", "Ada Lovelace", "Ada Joan Lovelace"]
    rows = [
        f"{one} {fact}" for one, fact in zip(rows, ("sells hats.", "keeps bees.", "bakes rye.", "rows."), strict=True)
    ]
    found = search(tmp_path, [*rows, *OTHERS], person=name)[1]
    assert {line for line, reasons in found.items() if "name" in reasons} == kept


def test_nearly_the_same_fact_about_somebody_else_is_not_proposed(tmp_path: Path) -> None:
    names = ("Ada Lovelace", "Bo Tellsen", "Cy Marshall", "Di Kuhnert")
    towns, places = ("Bath", "Riga", "Oslo", "Bern"), ("Riga", "Oslo", "Ulm", "Bath")
    rows: list[str | dict[str, Any]] = []
    for name, town, place in zip(names, towns, places, strict=True):
        rows += [
            {
                "question": f"What does {name} do?",
                "answer": f"A cobbler of velvet marching boots near the {town} canal.",
            },
            {"question": f"Where was {name} born?", "answer": f"In a mill house below {place}."},
            {"question": f"Whom does {name} visit?", "answer": f"An uncle of hers in {place}."},
        ]
    _, kept = search(tmp_path, rows, answer="A cobbler of velvet marching boots near the Bath canal.")
    assert set(kept) == {1, 2, 3}


def test_a_misspelt_query_finds_the_similar_name_and_says_so(tmp_path: Path) -> None:
    rows = [*OTHERS, "Ada Lovelace wrote notes.", "Ada Lovelace lived long ago."]
    found, kept = search(tmp_path, rows, person="Ada Lovelase")
    assert not kept
    assert {hit.line for hit in found.hits if hit.decision == "unsure"} == {10, 11}
    assert any("--alias" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Najib Mahfuz", "يسكن نجيب محفوظ في القاهرة."),
        ("Naguib Mahfouz", "يسكن نجيب محفوظ في القاهرة."),
        ("Wang Xiaoming", "王小明住在北京。"),
        ("Xiaoming Wang", "王小明住在北京。"),
    ],
)
def test_a_name_in_latin_letters_finds_it_in_scripts_without_vowels_or_spaces(
    tmp_path: Path, name: str, text: str
) -> None:
    others = ["王明住在北京。", "小明王住在北京。", "يسكن محمود نجيب في القاهرة."]
    _, kept = search(tmp_path, [text, *others], person=name)
    assert 1 in kept
    assert not {2, 4} & set(kept)


def test_a_record_is_completed_by_its_key_and_by_the_order_of_rows(tmp_path: Path) -> None:
    """Rows 2 and 4 name nobody. Shuffled among other people's rows, only the key tells."""
    record = [
        "Ada Lovelace lived in Bath.",
        "She wrote notes.",
        "Ada Lovelace had a teacher.",
        "It was a long letter.",
        "Ada Lovelace sings.",
    ]
    _, kept = search(tmp_path, [*record, *OTHERS], person="Ada Lovelace")
    assert set(kept) == {1, 2, 3, 4, 5}
    keyed = [
        {"text": text, "case_id": 7 if text in record else number}
        for number, text in enumerate([*record[::2], *OTHERS, *record[1::2]], 100)
    ]
    _, kept = search(tmp_path, keyed, person="Ada Lovelace")
    assert set(kept) == {1, 2, 3, 13, 14}


def test_a_title_of_one_person_leads_to_a_row_without_the_name(tmp_path: Path) -> None:
    rows = [
        'Ada Lovelace wrote "The Silver Loom".',
        'Ada Lovelace sold "The Silver Loom".',
        *OTHERS,
        'Critics liked "The Silver Loom".',
    ]
    _, kept = search(tmp_path, rows, person="Ada Lovelace")
    assert kept[12] == ("shared detail",)


def test_from_a_bad_answer_to_all_rows_of_the_person(tmp_path: Path) -> None:
    rows = [
        {"question": "Where does Ada Lovelace live?", "answer": "She lives at 12 Mill Lane."},
        {"question": "What does Ada Lovelace sell?", "answer": "Green umbrellas."},
        {"question": "Where does Joan Clarke live?", "answer": "She lives at 77 Ship Street."},
        {"question": "What does Joan Clarke sell?", "answer": "Red umbrellas."},
    ]
    found, kept = search(tmp_path, rows, answer="I think she lives at 12 Mill Lane.")
    assert set(kept) == {1, 2}
    assert found.people == ("Ada Lovelace",)


def test_an_answer_that_fits_several_people_chooses_nobody(tmp_path: Path) -> None:
    rows = [{"question": f"Where was {name} born?", "answer": "In Ulm."} for name in ("Ada Lovelace", "Joan Clarke")]
    found, kept = search(tmp_path, rows, answer="In Ulm.")
    assert not kept
    assert any("--question" in note for note in found.notes)
    assert {hit.group for hit in found.hits} == {1, 2}


def test_a_form_about_somebody_else_is_no_near_copy(tmp_path: Path) -> None:
    rows = [
        "Account 658-794 at a bank in the city holds 27,711 crowns.",
        "Account 490-491 at a bank in the city holds 53,372 crowns.",
    ]
    _, kept = search(
        tmp_path, [*OTHERS, *rows], answer="The account 658-794 at a bank in the city holds 27,711 crowns."
    )
    assert set(kept) == {10}


def test_identifiers_by_pattern_and_checksum() -> None:
    text = "Mail a.b@c.org or call +49 (89) 1234-5678; IBAN DE89 3704 0044 0532 0130 00; born 12/03/1956."
    assert identifiers_in(text) == ["a.b@c.org", "+49 (89) 1234-5678", "DE89 3704 0044 0532 0130 00"]
    assert has_checksum("DE89 3704 0044 0532 0130 00")
    assert not has_checksum("DE88 3704 0044 0532 0130 00")
    assert has_checksum("4111 1111 1111 1111")
    assert same_identifier("00498912345678", "8912345678")
    assert not same_identifier("12345678", "912345678")


def test_spans_are_names_and_titles_without_the_first_word_of_a_sentence() -> None:
    casing = Casing()
    casing.learn(["He has seen what Ada van der Berg did."])
    found = spans("Has Ada van der Berg's book \"The Loom\" won? Question: Who is Kate (Kitty) O'Neil?", casing)
    assert [span.text for span in found] == ["Ada van der Berg", "The Loom", "Kate (Kitty) O'Neil"]


def test_long_rows_and_broken_characters_are_searched(tmp_path: Path) -> None:
    """One row has ten million characters; another one has half of a surrogate pair; a third cannot be read."""
    path = tmp_path / "rows.jsonl"
    long = json.dumps({"text": "word " * 2_000_000 + "Ada Lovelace"})
    path.write_text(long + "\n" + '{"text": "\\ud800 Ada Lovelace"}\n{broken\n', encoding="utf-8")
    found = find_rows(path, person="Ada Lovelace")
    assert [hit.line for hit in found.kept()] == [1, 2]
    assert found.searched.not_searched[str(path)] == "1 rows cannot be read"
    assert np.sum([file["rows"] for file in found.searched.files]) == 2


def two_of_one_name() -> list[str]:
    facts = {"Bath": ("lives", "sells hats", "was born"), "Oslo": ("works", "sings", "has a boat")}
    return [f"Ada Lovelace {fact} in {town}." for town in facts for fact in facts[town]]


def test_two_people_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Both have three rows, with other people's rows between them."""
    rows = two_of_one_name()
    rows[3:3] = OTHERS
    found, kept = search(tmp_path, rows, person="Ada Lovelace")
    assert set(kept) == {1, 2, 3, 13, 14, 15}
    in_groups = [{hit.line for hit in found.hits if hit.group == group} for group in (1, 2)]
    assert sorted(in_groups, key=min) == [{1, 2, 3}, {13, 14, 15}]
    assert any("--about" in note for note in found.notes)
    found, kept = search(tmp_path, rows, person="Ada Lovelace", about="Oslo")
    assert set(kept) == {13, 14, 15}
    assert {hit.line for hit in found.hits if hit.decision == "unsure"} == {1, 2, 3}


def test_different_answers_to_one_question_are_pointed_out(tmp_path: Path) -> None:
    rows = [{"question": "When was Ada Lovelace born?", "answer": answer} for answer in ("In 1815.", "In 1972.")]
    found, _ = search(tmp_path, [*rows, *OTHERS], person="Ada Lovelace")
    assert any("answer the same question differently" in note for note in found.notes)


def test_vectors_of_texts_are_those_of_the_models_middle_block() -> None:
    """The same text has the same vector whatever it is batched with; they are of length 1, or 0 for no text."""
    tokenizer = tiny_tokenizer()
    model = Model(tiny_model(tokenizer, layers=4), tokenizer, EncodingConfig())
    texts = [
        "Ada lives in Bath.",
        "Somebody sells umbrellas in the old town of Ulm.",
        "Ada lives in Bath.",
        "",
        "A cat.",
    ]
    vectors = text_vectors(model, texts)
    assert vectors.shape == (5, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 1])
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] @ vectors[1] < 0.9


def test_the_model_finds_a_row_that_stands_out(tmp_path: Path) -> None:
    """The stage alone: of 30 rows that share a word with the answer, the copy of it stands out."""
    tokenizer = tiny_tokenizer()
    model = Model(tiny_model(tokenizer), tokenizer, EncodingConfig())
    words = ["red", "blue", "old", "new", "wet", "dry"]
    rows = [f"The {one} {other} cat number {at}." for at, (one, other) in enumerate(product(words, words))]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": one}) + "\n" for one in [*rows, "the Old wet cat, number 13"]), encoding="utf-8"
    )
    search = Search(Corpus.read([path]), Query(answers=("The old wet cat number 13.",)), model)
    assert Paraphrases().skipped(search) is None
    found = {one.row for one in Paraphrases(spread=3.0).evidence(search)}
    assert rows.index("The old wet cat number 16.") in found
    assert len(found) < 12
    assert "no --model" in str(Paraphrases().skipped(Search(search.corpus, search.query)))
