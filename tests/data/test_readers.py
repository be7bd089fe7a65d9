"""Test reading of files: all formats, the locations in messages, missing files and the hub."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import SHARED

from llm_forget.data.examples import (
    DataSource,
    Example,
    Message,
    check_overlap,
    example_id,
    read_examples,
)
from llm_forget.errors import DataError

TOFU = SHARED / "data" / "tofu"
GOOD = '{"question": "Q", "answer": "A"}'
SECRET = "plantedsecret"


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start from the current folder."""
    monkeypatch.chdir(tmp_path)


def read(folder: Path, text: str, name: str = "f.jsonl", **options: Any) -> list[Example]:
    (folder / name).write_bytes(text.encode("utf-8"))
    return read_examples(DataSource(name, **options))


def refusal(folder: Path, text: str, name: str = "f.jsonl") -> str:
    with pytest.raises(DataError) as caught:
        read(folder, text, name)
    return str(caught.value)


# --- formats ---


def test_jsonl_counts_blank_lines_and_takes_a_byte_order_mark(tmp_path: Path) -> None:
    found = read(tmp_path, f"\ufeff\n{GOOD}\r\n\n  \n{GOOD}")
    assert [one.source for one in found] == ["f.jsonl:2", "f.jsonl:5"]
    assert found[0].id == found[1].id


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path: Path) -> None:
    found = read(tmp_path, '{"question": "a\u2028b\x85c", "answer": "A"}\n' + GOOD)
    assert [one.source for one in found] == ["f.jsonl:1", "f.jsonl:2"]


@pytest.mark.parametrize("text", [f"[{GOOD}, {GOOD}]", f'{{"version": 1, "data": [{GOOD}, {GOOD}]}}'])
def test_json_as_a_list_or_an_object_with_one(tmp_path: Path, text: str) -> None:
    assert [one.source for one in read(tmp_path, text, "f.json")] == ["f.json, item 1", "f.json, item 2"]


@pytest.mark.parametrize("text", [GOOD, '{"a": [1], "b": [2]}', "3", '"x"'])
def test_json_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    assert "a list of objects is needed" in refusal(tmp_path, text, "f.json")


def test_csv_with_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    text = 'question,answer,note\r\n"a, ""b""\r\nc",A,\r\n\r\nQ,"B\nB",x\r\n'
    found = read(tmp_path, text, "f.csv")
    assert [one.prompt[0].content for one in found if not isinstance(one.prompt, str)] == ['a, "b"\r\nc', "Q"]
    assert [one.answer for one in found] == ["A", "B\nB"]
    assert [one.source for one in found] == ["f.csv:2", "f.csv:5"]


cell = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=4), st.sampled_from([("f.csv", ","), ("f.tsv", "\t")]))
def test_csv_round_trip(tmp_path: Path, pairs: list[tuple[str, str]], kind: tuple[str, str]) -> None:
    with (tmp_path / kind[0]).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=kind[1]).writerows([("prompt", "completion"), *pairs])
    assert [(one.prompt, one.answer) for one in read_examples(DataSource(kind[0]))] == pairs


def test_csv_cells_may_be_json_lists_or_empty(tmp_path: Path) -> None:
    text = 'question,answer,perturbed_answer,alternative\nQ,[1],"[""B"", ""C""]",\nQ,A,[laughs] no,E\n'
    found = read(tmp_path, text, "f.csv")
    assert [one.answer for one in found] == ["[1]", "A"]
    assert [one.wrong_answers for one in found] == [("B", "C"), ("[laughs] no",)]
    assert [one.alternative for one in found] == [None, "E"]
    assert "looks like a list and is not JSON" in refusal(tmp_path, text.replace('""', "'"), "f.csv")


def test_csv_cells_may_be_long_documents(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(tmp_path, "text\n" + "x" * 200_000, "f.csv")[0].answer) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("question,answer\nQ,A\nQ,A,B\n", "f.csv:3", "3 cells under 2 columns"),
        ('question,answer\nQ,"A\nQ,A\n', "f.csv:2", "quotes of this record"),
        ("question,question\nQ,A\n", "f.csv:1", "names a column twice"),
        ("question,answer\nQ,\n", "f.csv:2", "answer is missing"),
        ("question,answer\n", "f.csv", "holds no rows"),
        ("", "f.csv", "holds no rows"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, place: str, said: str) -> None:
    message = refusal(tmp_path, text, "f.csv")
    assert place in message
    assert said in message


@pytest.mark.parametrize("name", ["f.csv", "f.json"])
def test_undecodable_text_names_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"question,answer\nQ,A\nQ,\xff\n")
    with pytest.raises(DataError, match=re.escape(f"{name}:3: not UTF-8")):
        read_examples(DataSource(name))


def test_utf16_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(DataError, match=r"f\.jsonl:1: the file is UTF-16"):
        read_examples(DataSource("f.jsonl"))


def test_parquet(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]] * 2
    pq.write_table(pa.table({"messages": turns, "perturbed_answer": [["B"], None]}), tmp_path / "f.parquet")
    found = read_examples(DataSource("f.parquet"))
    assert [(one.source, one.answer, one.wrong_answers) for one in found] == [
        ("f.parquet, row 1", "A", ("B",)),
        ("f.parquet, row 2", "A", ()),
    ]
    assert found[0].id == example_id((Message("user", "Q"),), "A")
    assert "not a Parquet file" in refusal(tmp_path, "plain text", "g.parquet")


def test_limit_stops_reading(tmp_path: Path) -> None:
    assert len(read(tmp_path, f"{GOOD}\n\n{GOOD}\nnot json", limit=2)) == 2


# --- paths and the hub ---


@pytest.mark.parametrize("path", ["forgt.jsonl", "./forgt.jsonl", "data/forget", "a/b/c", "nothing", "data/x.csv"])
def test_missing_file_names_the_nearest(tmp_path: Path, path: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "forget.jsonl").touch()
    (tmp_path / "retain.jsonl").touch()
    with pytest.raises(DataError) as caught:
        read_examples(DataSource(path))
    assert f"{path}: no such file" in str(caught.value)
    assert ("did you mean forget.jsonl" in str(caught.value)) == ("forgt" in path)


def test_folder_and_unknown_ending(tmp_path: Path) -> None:
    assert "allowed are .jsonl" in refusal(tmp_path, GOOD, "f.txt")
    (tmp_path / "f.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=r"is a folder; name one file in it \(f\.jsonl\)"):
        read_examples(DataSource(str(tmp_path)))


def test_absolute_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.jsonl").write_text(GOOD)
    assert read_examples(DataSource(str(tmp_path / "f.jsonl")))
    monkeypatch.chdir(tmp_path)
    assert read_examples(DataSource("f.jsonl"))


def test_hub_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(path: str, name: str | None, split: str, revision: str | None) -> list[dict[str, str]]:
        calls.append((path, name, split, revision))
        return [json.loads(GOOD)] * 3

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = DataSource("owner/name-1.0", split="test", name="small", limit=2, revision="abc")
    found = read_examples(source)
    assert calls == [("owner/name-1.0", "small", "test", "abc")]
    assert [one.source for one in found] == ["owner/name-1.0[test], row 1", "owner/name-1.0[test], row 2"]


def test_hub_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"owner/name: .*RuntimeError.*give a file") as caught:
        read_examples(DataSource("owner/name"))
    assert SECRET not in str(caught.value)


# --- real files ---


@pytest.mark.skipif(not TOFU.is_dir(), reason="needs a local copy of TOFU")
def test_tofu_files_load() -> None:
    sets = {path.name: read_examples(DataSource(str(path))) for path in sorted(TOFU.glob("*.jsonl"))}
    assert (len(sets["forget01.jsonl"]), len(sets["retain99.jsonl"]), len(sets["full.jsonl"])) == (40, 3960, 4000)
    assert all(len(one.wrong_answers) >= 2 for one in sets["forget01_perturbed.jsonl"])
    assert all(one.paraphrases for one in sets["forget01_perturbed.jsonl"])
    assert [one.id for one in sets["forget01_perturbed.jsonl"]] == [one.id for one in sets["forget01.jsonl"]]
    check_overlap(sets["forget01.jsonl"], sets["retain99.jsonl"])
    with pytest.raises(DataError, match="40 of 40"):
        check_overlap(sets["forget01.jsonl"], sets["full.jsonl"])
