"""Searches over small files: what is found, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from extras import needs
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.errors import DataError, UserError
from llm_forget.find import Corpus, find, find_rows
from llm_forget.find.index import read_indexed

pytestmark = needs("rapidfuzz")

ROWS = [
    {"question": "Where does Ada Lovelace live?", "answer": "Ada Lovelace lives in Bath."},
    {"question": "Where does Alan Turing live?", "answer": "He lives in Wilmslow."},
    {"question": "What is the capital of France?", "answer": "Paris."},
]


def written(folder: Path, rows: list[dict[str, object]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_name_finds_its_row_with_file_line_and_reason(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    hit = find_rows(path, person="Ada Lovelace").hits[0]
    assert (hit.file, hit.line, hit.reasons[0], hit.decision) == (str(path), 1, "name", "keep")
    assert list(find(path, person="ada  LOVELACE")["line"]) == [1]


def test_json_has_rows_and_what_was_searched(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    shown = CliRunner().invoke(app, ["find", "--data", str(path), "--person", "Alan Turing", "--json"])
    found = json.loads(shown.stdout)
    assert [(row["file"], row["line"]) for row in found["rows"]] == [(str(path), 2)]
    assert found["searched"]["rows"] == 3
    assert found["searched"]["terms"]["person"]["count"] == 1
    assert "Turing" not in json.dumps(found["searched"])


@pytest.mark.parametrize(
    ("given", "message"), [({}, "nothing to search for"), ({"person": " - "}, "--person is empty")]
)
def test_an_empty_query_is_refused(tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(written(tmp_path, ROWS), **given)  # type: ignore[arg-type]


def test_data_that_cannot_be_searched_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file that can be read"):
        Corpus.read([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        Corpus.read([tmp_path / "missing.jsonl"])


def test_an_index_gives_the_same_hits_and_follows_the_data(tmp_path: Path) -> None:
    """The second search reads the index; after a row is removed, no file of the index holds its text."""
    rows = [{**row, "case_id": number // 2} for number, row in enumerate(ROWS)]
    path, folder = written(tmp_path, rows), tmp_path / "index"
    first = find_rows(read_indexed([path], folder), person="Ada Lovelace")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    second = find_rows(read_indexed([path], folder), person="Ada Lovelace")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert second.hits == first.hits
    assert any(b"Lovelace" in file.read_bytes() for file in folder.iterdir())
    written(tmp_path, rows[1:])
    assert not find_rows(read_indexed([path], folder), person="Ada Lovelace").hits
    assert not any(b"lovelace" in file.read_bytes().lower() for file in folder.iterdir())
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    assert find_rows(read_indexed([path], folder), person="Alan Turing").hits


def test_exit_statuses_and_what_is_said(tmp_path: Path) -> None:
    path = str(written(tmp_path, ROWS))
    run = CliRunner().invoke
    assert run(app, ["find", "--data", path, "--person", "Alan Turing"]).exit_code == 0
    nothing = run(app, ["find", "--data", path, "--person", "Zork Blugg"])
    assert nothing.exit_code == 1
    assert "no hit in 3 rows" in nothing.output
    assert "no row has the name 'Zork Blugg'" in " ".join(nothing.output.split())
    asked = run(app, ["find", "--data", path, "--ask", "Where is Ada?"])
    assert "--ask needs --model" in str(asked.exception)
    assert "give --data" in str(run(app, ["find", "--person", "Ada Lovelace"]).exception)
    assert "add --output_dir" in str(run(app, ["find", "--review", "review.jsonl"]).exception)
    assert "has no @" in str(run(app, ["find", "--data", path, "--email", "ada"]).exception)
