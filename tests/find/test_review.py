"""The review file and the sets that are made from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from extras import needs
from typer.testing import CliRunner, Result

from llm_forget.cli.main import app
from llm_forget.data.examples import DataSource, check_overlap, read_examples
from llm_forget.demo.people import people
from llm_forget.demo.splits import rows as rows_of
from llm_forget.find import Corpus
from llm_forget.find.record import term_digest
from llm_forget.find.words import words_of

pytestmark = needs("rapidfuzz")

PEOPLE = people(8, 3)


def command(*options: str | Path) -> Result:
    return CliRunner().invoke(app, ["find", *map(str, options)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [row for person in PEOPLE for row in rows_of(person, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["review.jsonl", "review.csv"])
def test_from_a_name_over_a_review_to_the_sets_of_a_recipe(data: Path, tmp_path: Path, name: str) -> None:
    """One row is dropped by hand and one marked unsure; the rest of the person's twelve rows is forgotten."""
    review, folder = tmp_path / name, tmp_path / "sets"
    assert command("--data", data, "--person", PEOPLE[2].name, "--review", review).exit_code == 0
    if name.endswith(".csv"):
        with review.open(encoding="utf-8", newline="") as file:
            hits = list(csv.DictReader(file))
    else:
        hits = lines(review)
    kept = [hit for hit in hits if hit["decision"] == "keep"]
    assert {int(hit["line"]) for hit in kept} == set(range(25, 37))
    kept[0]["decision"], kept[1]["decision"] = "drop", "Unsure"
    if name.endswith(".csv"):
        with review.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(hits[0]))
            table.writeheader()
            table.writerows(hits)
    else:
        review.write_text("".join(json.dumps(hit) + "\n" for hit in hits), encoding="utf-8")

    made = command("--review", review, "--output_dir", folder, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["sets"] == {"forget": 10, "retain": 75, "neighbours": 10, "holdout": 10, "unsure": 1}
    sets = {
        one: read_examples(DataSource(path=str(folder / f"{one}.jsonl"))) for one in ("forget", "retain", "neighbours")
    }
    assert all(PEOPLE[2].name in row["subject"] for row in lines(folder / "forget.jsonl"))
    for one in ("retain", "neighbours"):
        check_overlap(sets["forget"], sets[one])
    assert not {row.id for row in sets["retain"]} & {row.id for row in sets["neighbours"]}


def test_holdout_rows_name_nobody_of_the_data(data: Path, tmp_path: Path) -> None:
    command("--data", data, "--person", PEOPLE[2].name, "--output_dir", tmp_path / "sets")
    known = [" ".join(words_of(person.name)) for person in PEOPLE]
    trained = data.read_text(encoding="utf-8")
    for row in lines(tmp_path / "sets" / "holdout.jsonl"):
        assert not any(name in " ".join(words_of(row["question"])) for name in known)
        assert row["question"] not in trained


def test_real_holdout_rows_are_taken_as_they_are(data: Path, tmp_path: Path) -> None:
    unseen = tmp_path / "unseen.jsonl"
    rows = [{"question": row["question"], "answer": row["answer"]} for row in rows_of(people(1, 77)[0], 77)]
    unseen.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command("--data", data, "--person", PEOPLE[2].name, "--output_dir", tmp_path / "sets", "--holdout", unseen)
    assert lines(tmp_path / "sets" / "holdout.jsonl") == rows


def test_the_record_holds_no_text_and_who_knows_a_term_can_check_it(data: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command("--data", data, "--person", PEOPLE[2].name, "--record", record)
    text = record.read_text(encoding="utf-8")
    assert not any(word in text.casefold() for word in words_of(PEOPLE[2].name))
    found = json.loads(text)
    assert found["terms"]["person"]["digests"] == [term_digest(PEOPLE[2].name.upper(), found["salt"])]
    assert found["hits"]["keep"] == 12
    assert found["files"][0]["rows"] == found["rows"] == 96


def test_a_review_that_cannot_be_used_is_refused_in_words(data: Path, tmp_path: Path) -> None:
    review = tmp_path / "review.jsonl"
    options = ("--review", review, "--output_dir", tmp_path / "sets")
    command("--data", data, "--person", PEOPLE[2].name, "--review", review)
    again = command("--data", data, "--person", PEOPLE[3].name, "--review", review)
    assert "already exists and may hold decisions" in str(again.exception)
    hits = lines(review)
    review.write_text(json.dumps(hits[0] | {"decision": "yes"}) + "\n", encoding="utf-8")
    assert f"{review}:1: the decision is none of keep, drop, unsure" in str(command(*options).exception)
    review.write_text(json.dumps(hits[0] | {"decision": "drop"}) + "\n", encoding="utf-8")
    assert "nothing to forget" in str(command(*options).exception)
    review.write_text(json.dumps(hits[0] | {"line": 999}) + "\n", encoding="utf-8")
    assert "not in the data" in str(command(*options).exception)
    review.write_text(json.dumps(hits[0]) + "\n", encoding="utf-8")
    data.write_text(data.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "has changed since the search" in str(command(*options).exception)
    assert not (tmp_path / "sets").exists()


def test_places_lead_back_to_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"text": "Nobody here."}, {"text": "Ada Lovelace lives in Bath."}]), encoding="utf-8")
    table = tmp_path / "table.csv"
    table.write_text('text\n"one\ntwo"\nAda Lovelace wrote notes.\n', encoding="utf-8")
    corpus = Corpus.read([listed, table])
    for row in range(len(corpus)):
        assert corpus.row_at(corpus.place(row)) == row
        assert corpus.values([row])[0].values["text"] == corpus.text(row)


def test_a_run_keeps_the_record_that_its_recipe_names_and_the_report_shows_it(data: Path, tmp_path: Path) -> None:
    from run_examples import write_run

    from llm_forget.report.page import write_report

    command("--data", data, "--person", PEOPLE[2].name, "--output_dir", tmp_path / "sets")
    run = write_run(tmp_path / "run", forget=0.1, retain=0.9, method="npo")
    assert "How the rows to forget were found" not in write_report(run).read_text(encoding="utf-8")
    (run / "search.json").write_bytes((tmp_path / "sets" / "search.json").read_bytes())
    page = write_report(run).read_text(encoding="utf-8")
    assert "12 keep" in page
    assert "12 forget" in page
    assert PEOPLE[2].name not in page
    (run / "search.json").write_text("[1]", encoding="utf-8")
    assert "cannot be read" in write_report(run).read_text(encoding="utf-8")
