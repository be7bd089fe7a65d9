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

from llm_forget.data import arrow_files, row
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


@pytest.mark.parametrize("text", ["3", '"x"', "null", "[1, 2]"])
def test_json_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    assert "object" in refusal(tmp_path, text, "f.json")


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.txt", "f.data", "f"])
@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}\n{GOOD}\n",
        f"\n{GOOD}\r\n{GOOD}",
        f"[{GOOD}, {GOOD}]",
        f"[\n  {GOOD},\n  {GOOD}\n]\n",
        f'{{"version": 1, "data": [\n{GOOD},\n{GOOD}]}}',
    ],
)
def test_json_is_known_by_its_content(tmp_path: Path, name: str, text: str) -> None:
    assert [one.answer for one in read(tmp_path, text, name)] == ["A", "A"]


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_one_object_is_one_row(tmp_path: Path, name: str) -> None:
    turns = '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}'
    assert [one.answer for one in read(tmp_path, turns, name)] == ["A"]
    assert [one.answer for one in read(tmp_path, GOOD, name)] == ["A"]


def test_a_damaged_line_is_named_under_any_name(tmp_path: Path) -> None:
    for name in ("f.jsonl", "f.json", "f.txt"):
        assert f"{name}:2: not valid JSON (character 2)" in refusal(tmp_path, f"{GOOD}\n{{'x'}}\n{GOOD}", name)
    assert "f.jsonl:1: not valid JSON" in refusal(tmp_path, f"{{'x'}}\n{GOOD}")


@pytest.mark.parametrize(
    ("name", "delimiter", "said"),
    [
        *[("f.csv", ";", "semicolons"), ("f.csv", "\t", "tabs"), ("f.csv", ",", None), ("f.csv", "|", "vertical bars")],
        *[("f.tsv", "\t", None), ("f.tsv", ",", "commas"), ("f.txt", "\t", None), ("f.txt", ";", None)],
    ],
)
def test_the_delimiter_is_found_and_told(tmp_path: Path, name: str, delimiter: str, said: str | None) -> None:
    with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerows([("question", "answer"), *((f"Q{index}", f"In town, {index}.") for index in range(3))])
    notes: list[str] = []
    assert [one.answer for one in read_examples(DataSource(name), notes)][1] == "In town, 1."
    assert [said in note for note in notes] == ([] if said is None else [True])


def test_excels_line_that_names_the_delimiter(tmp_path: Path) -> None:
    found = read(tmp_path, "sep=;\r\nquestion;answer\r\nQ,x;A\r\n", "f.csv")
    assert (found[0].prompt[0].content, found[0].source) == ("Q,x", "f.csv:3")


def test_one_column_with_commas_in_quotes_stays_one_column(tmp_path: Path) -> None:
    assert read(tmp_path, 'text\n"a; b, c"\n"d; e, f"\n', "f.csv")[1].answer == "d; e, f"


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_name_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "f.jsonl").write_bytes(GOOD.replace("Q", "Größe").encode(encoding))
    (tmp_path / "f.csv").write_bytes("question,answer\nGröße,A\n".encode(encoding))
    for name in ("f.jsonl", "f.csv"):
        assert read_examples(DataSource(name))[0].prompt[0].content == "Größe"
    (tmp_path / "f.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"f\.csv:1: begins as UTF-16 and is not"):
        read_examples(DataSource("f.csv"))


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


ROWS = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(5)]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.select([3, 1]).save_to_disk("chosen")
    found = read_examples(DataSource("chosen"))
    assert [(one.answer, one.source) for one in found] == [("A3", "chosen, row 1"), ("A1", "chosen, row 2")]
    assert len(read_examples(DataSource("chosen", limit=1))) == 1
    arrow = next((tmp_path / "chosen").glob("*.arrow"))
    assert [one.answer for one in read_examples(DataSource(str(arrow)))]

    datasets.DatasetDict({"test": data.select([2])}).save_to_disk("one")
    notes: list[str] = []
    assert [one.answer for one in read_examples(DataSource("one"), notes)] == ["A2"]
    assert notes == ["one: read the split test, the only one"]
    datasets.DatasetDict({"test": data.select([2]), "dev": data}).save_to_disk("two")
    assert len(read_examples(DataSource("two", split="dev"))) == 5
    with pytest.raises(DataError, match="two: has no split train; set split to one of dev, test"):
        read_examples(DataSource("two"))
    (tmp_path / "one" / "test" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="one: a folder of save_to_disk that cannot be read"):
        read_examples(DataSource("one"))


def test_parquet_and_arrow_are_known_by_their_content(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "table.data")
    with pa.OSFile(str(tmp_path / "file.data"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("table.data", "file.data"):
        assert [one.answer for one in read_examples(DataSource(name))] == ["A0", "A1", "A2", "A3", "A4"]


def test_files_that_grow_when_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, table: pa.Table) -> None:
        pq.write_table(table, tmp_path / name, compression="zstd")

    same = pa.array(["a"] * 2_000_000).dictionary_encode().cast(pa.string())
    write("rows.parquet", pa.table({"question": same, "answer": same}))
    assert (tmp_path / "rows.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"holds 2,000,000 rows; at most 1,000,000 are read: set limit"):
        read_examples(DataSource("rows.parquet"))
    assert len(read_examples(DataSource("rows.parquet", limit=3))) == 3
    write("fewer.parquet", pa.table({"question": same[:500_000], "answer": same[:500_000]}))
    with pytest.raises(DataError, match=r"holds 500,000 rows in [\d,]+ bytes"):
        read_examples(DataSource("fewer.parquet"))
    write("cell.parquet", pa.table({"question": ["Q"], "answer": ["x" * 17_000_000]}))
    with pytest.raises(DataError, match=r"row 1: answer has 17,000,000 characters; at most 16,777,216"):
        read_examples(DataSource("cell.parquet"))
    write("repeated.parquet", pa.table({"question": ["Q"] * 100, "answer": ["x" * 100_000] * 100}))
    assert len({id(one.answer) for one in read_examples(DataSource("repeated.parquet"))}) == 1
    monkeypatch.setattr(arrow_files, "_MOST_VALUES", 1000)
    values = pa.ListArray.from_arrays([0, 2000], pa.nulls(2000, pa.int8()))
    write("list.parquet", pa.table({"question": ["Q"], "answer": ["A"], "other": values}))
    with pytest.raises(DataError, match=r"a row group holds 2,000 values"):
        read_examples(DataSource("list.parquet"))


def test_too_many_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row, "MOST_ROWS", 2)
    with pytest.raises(DataError, match=r"f\.jsonl: holds more than 2 rows; at most 2 are read: set limit"):
        read(tmp_path, f"{GOOD}\n" * 3)
    assert len(read(tmp_path, f"{GOOD}\n" * 3, limit=2)) == 2


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
    assert "allowed are .jsonl" in refusal(tmp_path, "Some text.\nMore, of it", "f.txt")
    (tmp_path / "f.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=r"is a folder; name one file in it \(f\.jsonl\), or a folder that Dataset"):
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
