"""Results are checked against their own scores and digests when they are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_examples import tiny_model, write_jsonl, write_sets, write_task

from llm_forget.data.examples import DataSource
from llm_forget.errors import UserError
from llm_forget.evaluation.recount import doubts_about
from llm_forget.evaluation.results import open_results, read_results, write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import GenerationConfig, SetConfig
from llm_forget.evaluation.suite import CapabilityConfig, Suite
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.files import file_digest, write_record

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """Return results with every kind of figure that is computed again."""
    folder = tmp_path_factory.mktemp("recount")
    write_sets(folder)
    write_jsonl(folder / "holdout.jsonl", [{"question": f"Sum {i}?", "answer": f"Nobody {i * 7}."} for i in range(4)])
    sets = {name: SetConfig(DataSource(str(folder / f"{name}.jsonl"))) for name in ("forget", "retain", "holdout")}
    sets["retain"] = replace(sets["retain"], generate=False)
    task = CapabilityConfig(str(write_task(folder)), limit=4)
    suite = Suite(name="tiny", sets=sets, generation=GenerationConfig(max_new_tokens=3), capability=task)
    return run_suite(suite, tiny_model(), tiny_tokenizer(), files={"adapter": "a" * 64, "base": None})


@pytest.fixture
def file(results: Raw, tmp_path: Path) -> Path:
    write_results(results, tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


def edit(file: Path, change: Callable[[Raw], Any], *, honest: bool) -> list[str]:
    """Change the file's content, with a fitting checksum or not, and return what is said about it."""
    raw = json.loads(file.read_text())
    change(raw)
    if honest:
        write_record(file, raw)
    else:
        file.write_text(json.dumps(raw))
    return doubts_about(open_results(file))


def test_results_say_which_model_they_are_of(results: Raw, file: Path) -> None:
    again = run_suite(_one(file), tiny_model(), tiny_tokenizer())
    other = run_suite(_one(file), tiny_model(seed=1), tiny_tokenizer())
    assert results["model"] == {"weights": again["model"]["weights"], "adapter": "a" * 64, "base": None}
    assert len(results["model"]["weights"]) == 64
    assert other["model"]["weights"] != again["model"]["weights"]
    assert json.loads(file.read_text())["model"] == results["model"]


def _one(file: Path) -> Suite:
    rows = file.with_name("one.jsonl")
    write_jsonl(rows, [{"question": "One?", "answer": "Two."}])
    return Suite(name="one", sets={"forget": SetConfig(DataSource(str(rows)), generate=False)}, attacks=None)


def test_untouched_results_are_not_doubtful(file: Path) -> None:
    assert doubts_about(open_results(file)) == []
    file.write_text(json.dumps(json.loads(file.read_text())))  # another layout is no edit
    assert doubts_about(open_results(file)) == []


FIGURES: dict[str, Callable[[Raw], Any]] = {
    "forget.probability": lambda raw: raw["sets"]["forget"]["metrics"]["probability"].update(value=0.0001),
    "retain.exact_memorisation": lambda raw: raw["sets"]["retain"]["metrics"]["exact_memorisation"].update(value=0.875),
    "forget.truth_ratio_arithmetic": lambda raw: raw["sets"]["forget"]["metrics"]["truth_ratio_arithmetic"].update(
        value=1
    ),
    "the n of forget.rougeL_recall": lambda raw: raw["sets"]["forget"]["metrics"]["rougeL_recall"].update(n=400),
    "the number of forget examples": lambda raw: raw["sets"]["forget"].update(n=400),
    "forget.entropy": lambda raw: raw["sets"]["forget"]["metrics"]["entropy"].update(value=None, n=0),
    "the loss attack's AUC": lambda raw: raw["attacks"]["auc"]["loss"].update(value=0.123456),
    "acc": lambda raw: raw["capability"]["acc"].update(value=0.9875),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_that_the_scores_do_not_give_is_named(file: Path, name: str) -> None:
    before = json.loads(file.read_text())
    said = edit(file, FIGURES[name], honest=True)
    assert any(f"{name} is stated as" in one and "but the scores of its examples give" in one for one in said), said
    file.write_text(json.dumps(before))
    edited, *rest = edit(file, FIGURES[name], honest=False)
    assert edited == "tiny.json was edited after it was written"
    assert rest == said


def test_both_values_are_named(results: Raw, file: Path) -> None:
    right = results["sets"]["forget"]["metrics"]["probability"]["value"]
    said = edit(file, FIGURES["forget.probability"], honest=True)
    assert said == [
        f"tiny.json: forget.probability is stated as 0.0001, but the scores of its examples give {right:.6g}"
    ]


EDITS: dict[str, Callable[[Raw], Any]] = {
    "an interval": lambda raw: raw["sets"]["forget"]["metrics"]["probability"].update(low=0.0),
    "a set's digest": lambda raw: raw["sets"]["retain"].update(digest="0" * 64),
    "the verdict": lambda raw: raw.update(verdict=["All forgotten."]),
    "the model": lambda raw: raw["model"].update(adapter="b" * 64),
    "a new section": lambda raw: raw.update(new={"value": 1.0, "n": 2}),
}


@pytest.mark.parametrize("name", EDITS)
def test_any_other_edit_is_said_too(file: Path, name: str) -> None:
    assert edit(file, EDITS[name], honest=False) == ["tiny.json was edited after it was written"]


def test_a_file_without_a_checksum_is_said(file: Path) -> None:
    assert edit(file, lambda raw: raw.pop("checksum"), honest=False) == [
        "tiny.json states no checksum, so it is unknown whether it was edited"
    ]


def test_two_evaluations_at_once_do_not_mix(results: Raw, tmp_path: Path) -> None:
    """Every order of their four writes leaves a pair of files that belong together; the loser's scores are removed."""
    other = copy.deepcopy(results)
    for one in other["sets"]["forget"]["examples"].values():
        one["probability"] = 0.25
    write_results(results, tmp_path / "a" / "tiny.json")
    write_results(other, tmp_path / "b" / "tiny.json")
    both = tmp_path / "both"
    both.mkdir()
    files = {name: sorted((tmp_path / name).iterdir(), key=lambda one: one.suffix) for name in "ab"}
    for first, second in ("ab", "ba"):
        for name in (first, second):
            (both / files[name][1].name).write_bytes(files[name][1].read_bytes())
        for name in (first, second):
            (both / "tiny.json").write_bytes(files[name][0].read_bytes())
        assert read_results(both / "tiny.json") == (other if second == "b" else results)
    write_results(results, both / "tiny.json")
    write_results(other, both / "tiny.json")
    assert read_results(both / "tiny.json") == other
    stated = json.loads((both / "tiny.json").read_text())["scores"]["file"]
    assert stated == files["b"][1].name


def test_what_is_not_ours_is_not_removed(results: Raw, tmp_path: Path) -> None:
    """Results from elsewhere may name any file as their scores."""
    for name in ("notes.parquet", "../kept.parquet"):
        kept = tmp_path / "eval" / name
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("mine")
        (tmp_path / "eval" / "tiny.json").write_text(json.dumps({"scores": {"file": name}}))
        write_results(results, tmp_path / "eval" / "tiny.json")
        assert kept.read_text() == "mine"


def _table(file: Path, change: Callable[[pa.Table], pa.Table], rows: int | None = None) -> None:
    """Replace the scores by a changed table, with the digest that the results state."""
    raw = json.loads(file.read_text())
    scores = file.parent / raw["scores"]["file"]
    table = change(pq.read_table(scores))
    pq.write_table(table, scores)
    raw["scores"] |= {"sha256": file_digest(scores), "rows": len(table) if rows is None else rows}
    write_record(file, raw)


def repeated(text: str, times: int) -> pa.Array:
    """Return a column that holds one text, and takes four bytes for each row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, dtype=np.int32)), pa.array([text]))


TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "of an unknown set": (
        lambda table: table.set_column(0, "set", pa.array(["secret"] * len(table))),
        "has rows of the set secret",
    ),
    "with numbers as text": (
        lambda table: table.set_column(2, table.column_names[2], pa.array(["x"] * len(table))),
        "has the type string",
    ),
    "without ids": (lambda table: table.drop_columns(["id"]), "lacks the columns set and id"),
    "with a row twice": (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "a row occurs twice"),
    "with a nested column": (
        lambda table: table.append_column("x", pa.array([[1.0]] * len(table))),
        "has the type list",
    ),
    "with an empty id": (
        lambda table: table.set_column(1, "id", pa.array([None] * len(table), pa.string())),
        "has no set or no id",
    ),
    "with five million rows": (
        lambda table: pa.table({"set": repeated("forget", 5_000_000), "id": repeated("x", 5_000_000)}),
        "more than any evaluation",
    ),
    "with a long text many times": (
        lambda table: pa.table({"set": repeated("forget" * 1_000, 100_000), "id": [str(i) for i in range(100_000)]}),
        "more than any evaluation|have 572 MB",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_scores_that_cannot_be_used_end_in_a_message(file: Path, name: str) -> None:
    change, words = TABLES[name]
    _table(file, change)
    with pytest.raises(UserError, match=words):
        doubts_about(open_results(file))


def test_text_in_the_name_of_the_scores_stays_in_the_folder(file: Path) -> None:
    raw = json.loads(file.read_text())
    for name in ("../x.parquet", "/etc/passwd", "..", "", "a/b.parquet"):
        write_record(file, {**raw, "scores": {**raw["scores"], "file": name}})
        with pytest.raises(UserError, match=r"scores\.file"):
            open_results(file)


def test_numbers_of_another_type_are_refused_by_place(file: Path) -> None:
    raw = json.loads(file.read_text())
    probability = raw["sets"]["forget"]["metrics"]["probability"]
    for value in ("0.5", True, [0.5], {"x": 1}):
        probability["value"] = value
        file.write_text(json.dumps(raw))
        with pytest.raises(UserError, match=r"sets\.forget\.metrics\.probability\.value"):
            open_results(file)
    for text in ("NaN", "Infinity", "1e999", "1" + 400 * "0"):
        file.write_text(json.dumps(raw | {"seconds": {"x": 7.5}}).replace("7.5", text))
        with pytest.raises(UserError, match=r"is not a number|too large"):
            open_results(file)


def test_the_auc_of_the_check_is_the_attacks_own(results: Raw, file: Path) -> None:
    """Ties count half: members 3, 1 and non-members 2, 1 give 1, 1, 0, ½ of four pairs."""
    from llm_forget.evaluation.recount import _auc

    assert _auc(np.array([3.0, 1.0]), np.array([1.0, 2.0])) == 0.625
