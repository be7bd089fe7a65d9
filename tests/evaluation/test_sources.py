"""Test suites with data from the hub or a folder, and their messages about missing data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from evaluation_examples import tiny_model, write_jsonl, write_sets
from places import SHARED

from llm_forget.data.examples import DataSource, Message
from llm_forget.errors import DataError, RecipeError
from llm_forget.evaluation.results import read_results, write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import SetConfig, read_set
from llm_forget.evaluation.sources import fill, with_data
from llm_forget.evaluation.suite import check_suite, load_suite
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.shipped import shipped

DATA = SHARED / "data"
needs_tofu = pytest.mark.skipif(not (DATA / "tofu").is_dir(), reason="needs a local copy of TOFU")
needs_muse = pytest.mark.skipif(not (DATA / "muse").is_dir(), reason="needs a local copy of MUSE")


@needs_tofu
@pytest.mark.parametrize(("share", "count"), [("01", 40), ("05", 200), ("10", 400)])
def test_tofu_from_a_folder(share: str, count: int) -> None:
    suite = load_suite(
        "tofu",
        {
            "data_dir": str(DATA / "tofu"),
            "variables.split": f"forget{share}",
            "variables.holdout": f"holdout{share}",
        },
    )
    check_suite(suite)
    assert suite.name == f"tofu-forget{share}"
    assert list(suite.left_out) == []
    sizes = {name: len(read_set(name, config)) for name, config in suite.sets.items()}
    assert sizes == {"forget": count, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": count}
    forget = read_set("forget", suite.sets["forget"])[0]
    assert (len(forget.paraphrases), len(forget.wrong_answers)) == (1, 5)


def test_tofu_from_the_hub_names_its_configurations() -> None:
    suite = load_suite("tofu", {"variables.split": "forget10"})
    hub = DataSource("locuslab/TOFU", name="forget10_perturbed", file="forget10_perturbed.jsonl")
    assert suite.sets["forget"].data == hub
    assert list(suite.left_out) == ["the set holdout was left out: holdout01.jsonl is not in the current folder"]


@needs_muse
@pytest.mark.parametrize(("corpus", "hub"), [("news", "MUSE-News"), ("books", "MUSE-Books")])
def test_muse_asks_with_ten_other_questions_as_shots(corpus: str, hub: str) -> None:
    suite = load_suite("muse", {"data_dir": str(DATA / "muse"), "variables.corpus": corpus, "variables.hub": hub})
    check_suite(suite)
    assert set(suite.sets) == {"forget_knowledge", "retain_knowledge"}
    assert len(suite.left_out) == 4
    assert suite.attacks is None
    assert suite.left_out[3].endswith("PrivLeak: they need forget_passages and holdout_passages")
    examples = read_set("forget_knowledge", suite.sets["forget_knowledge"])
    assert len(examples) == 100
    assert [turn.role for turn in examples[0].prompt] == ["user", "assistant"] * 10 + ["user"]
    plain = read_set("forget_knowledge", SetConfig(suite.sets["forget_knowledge"].data))
    assert [one.id for one in examples] == [one.id for one in plain]
    assert examples[5].prompt[-1] == plain[5].prompt[-1]


def test_muse_attacks_its_passages(tmp_path: Path) -> None:
    """Passages are scored and attacked, but not generated; PrivLeak of a model with itself as the oracle is 0."""
    rows = [{"question": f"What is {index}?", "answer": f"The {index}."} for index in range(3)]
    for part in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        write_jsonl(tmp_path / f"news_knowmem_{part}.jsonl", rows)
    passages = [{"text": f"In the story {index} the box is {'there' if index % 3 else 'red'}."} for index in range(8)]
    write_jsonl(tmp_path / "news_privleak_forget.jsonl", passages[::2])
    write_jsonl(tmp_path / "news_privleak_holdout.jsonl", passages[1::2])
    changes = {
        "perplexity": "null",
        "generation": "{max_new_tokens: 3, sampling: {samples: 2, k: [1, 2]}}",
        "data_dir": str(tmp_path),
    }
    suite = load_suite("muse", changes)
    assert len(suite.left_out) == 1
    oracle = run_suite(suite, tiny_model(), tiny_tokenizer())
    assert (oracle["attacks"]["members"], oracle["attacks"]["nonmembers"]) == ("forget_passages", "holdout_passages")
    assert oracle["attacks"]["auc"]["min_k"]["n"] == 4
    assert set(oracle["leak"]) == {"forget_knowledge"}
    scored = oracle["sets"]["forget_passages"]["metrics"]
    assert {"probability", "extraction_strength"} <= set(scored)
    assert not {"refusal", "collapse"} & set(scored)
    assert {"refusal", "repetition_3", "collapse"} <= set(oracle["sets"]["forget_knowledge"]["metrics"])
    same = run_suite(suite, tiny_model(), tiny_tokenizer(), controls={"oracle": oracle})
    assert same["privleak"]["value"] == 0
    assert any(line.startswith("PrivLeak is 0.000") for line in same["verdict"])
    write_results(same, tmp_path / "muse.json")
    assert read_results(tmp_path / "muse.json") == same


@needs_tofu
def test_tofu_reports_everything(tmp_path: Path) -> None:
    """Every section in one run, valid by the schema, with a line of the verdict for each."""
    changes = {f"sets.{name}.limit": "2" for name in ("forget", "retain", "real_authors", "world_facts", "holdout")}
    changes |= {
        "capability": "null",
        "generation": "{max_new_tokens: 3, sampling: {samples: 2, k: [1, 2]}}",
        "perplexity.max_tokens": "60",
        "data_dir": str(DATA / "tofu"),
    }
    suite = load_suite("tofu", changes)
    oracle = run_suite(suite, tiny_model(1), tiny_tokenizer())
    found = run_suite(suite, tiny_model(), tiny_tokenizer(), controls={"oracle": oracle}, target_model=tiny_model(2))
    assert set(found["attacks"]["auc"]) == {"loss", "zlib", "min_k", "min_k_plus_plus", "grad_norm"}
    assert set(found["leak"]["forget"]["at"]) == {"1", "2"}
    for section in ("forget_quality", "model_utility", "privleak", "perplexity", "kl_to_target"):
        assert found[section], section
    assert "kl_to_target" in found["sets"]["retain"]["metrics"]
    assert {"extraction_strength", "refusal", "repetition_3", "collapse"} <= set(found["sets"]["forget"]["metrics"])
    said = "\n".join(found["verdict"])
    for words in (
        "grad_norm attack's AUC",
        "forget: leak@2",
        "forget: extraction_strength",
        "Forget quality of forget",
    ):
        assert words in said
    write_results(found, tmp_path / "tofu.json")
    assert read_results(tmp_path / "tofu.json") == found


def test_custom_is_a_folder_with_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sets(tmp_path)
    off = {"perplexity": "null", "capability": "null", "generation.max_new_tokens": "2"}
    suite = load_suite("custom", {**off, "data_dir": str(tmp_path)})
    assert list(suite.left_out) == ["the set holdout was left out: holdout.jsonl is not in the data folder"]
    results = run_suite(suite, tiny_model(), tiny_tokenizer())
    assert set(results["sets"]) == {"forget", "retain"}
    assert results["warnings"] == list(suite.left_out)
    monkeypatch.chdir(tmp_path)
    here = run_suite(load_suite("custom", off), tiny_model(), tiny_tokenizer())
    assert here["sets"] == results["sets"]


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the folder .*nowhere does not exist.*files of tofu-forget01"):
        load_suite("tofu", {"data_dir": str(tmp_path / "nowhere")})
    (tmp_path / "retain_perturbed.jsonl").write_text("{}")
    with pytest.raises(RecipeError) as raised:
        load_suite("tofu", {"data_dir": str(tmp_path)})
    assert "lacks forget01_perturbed.jsonl (for forget), real_authors_perturbed.jsonl" in str(raised.value)
    assert "leave data_dir out to read from the hub" in str(raised.value)
    with pytest.raises(RecipeError, match="the suite's variables are: split"):
        load_suite("tofu", {"variables": "{split: forget05}"})
    with pytest.raises(RecipeError, match="has no value"):
        fill("{0}", {"a": "b"}, "here")
    optional = {"one": SetConfig(DataSource("nowhere.jsonl", file="nowhere.jsonl", optional=True))}
    assert with_data("mine", optional, str(tmp_path), {}) == (
        {},
        ["the set one was left out: nowhere.jsonl is not in the data folder"],
    )
    (tmp_path / "only.yaml").write_text(
        "sets: {one: {data: {path: nowhere.jsonl, file: nowhere.jsonl, optional: true}}}"
    )
    with pytest.raises(RecipeError, match="has none of the files of only"):
        load_suite(str(tmp_path / "only.yaml"), {"data_dir": str(tmp_path)})


def test_shots_come_from_the_folder_too(tmp_path: Path) -> None:
    """A set needs its shots; an optional set without them is left out."""
    one = SetConfig(
        DataSource("owner/name", file="a.jsonl", optional=True), shots=DataSource("owner/name", file="s.jsonl")
    )
    write_jsonl(tmp_path / "a.jsonl", [{"question": "Who?", "answer": "Nobody."}])
    assert with_data("mine", {"one": one}, str(tmp_path), {}) == (
        {},
        ["the set one was left out: s.jsonl is not in the data folder"],
    )
    write_jsonl(tmp_path / "s.jsonl", [{"question": "Where?", "answer": "Nowhere."}])
    found, left_out = with_data("mine", {"one": one}, str(tmp_path), {})
    assert left_out == []
    assert found["one"].shots is not None
    assert (found["one"].data.path, found["one"].shots.path) == (str(tmp_path / "a.jsonl"), str(tmp_path / "s.jsonl"))


def test_shots_precede_questions_and_change_the_set(tmp_path: Path) -> None:
    write_sets(tmp_path)
    write_jsonl(tmp_path / "shots.jsonl", [{"question": "Who?", "answer": "Nobody."}])
    write_jsonl(tmp_path / "text.jsonl", [{"text": "A passage."}])
    turns = DataSource(str(tmp_path / "shots.jsonl"))
    plain, shown = (
        SetConfig(DataSource(str(tmp_path / "retain.jsonl")), generate=False, shots=shots) for shots in (None, turns)
    )
    first = read_set("retain", shown)[0]
    assert first.prompt[:2] == (Message("user", "Who?"), Message("assistant", "Nobody."))
    with pytest.raises(DataError, match="shots need questions"):
        read_set("text", SetConfig(DataSource(str(tmp_path / "text.jsonl")), shots=turns))
    digests = []
    for config in (plain, shown):
        suite = load_suite("custom", {"perplexity": "null", "capability": "null", "data_dir": str(tmp_path)})
        results = run_suite(replace(suite, sets={"retain": config}), tiny_model(), tiny_tokenizer())
        digests.append(results["sets"]["retain"]["digest"])
    assert digests[0] != digests[1]


def test_wmdp_has_lm_eval_tasks_and_no_sets() -> None:
    suite = load_suite("wmdp")
    assert suite.sets == {}
    assert suite.benchmarks is not None
    assert suite.benchmarks.tasks[:3] == ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]
    assert "needs the network" in shipped("eval/suites/wmdp.yaml").read_text()


@pytest.mark.parametrize("text", ["{v.__class__}", "{v:>999999999}", "{v!r}", "{0}", "{}", "{", "}", "{v[0]}", "{{v}"])
def test_only_plain_variables_are_filled_in(text: str) -> None:
    with pytest.raises(RecipeError, match="has no value"):
        fill(text, {"v": "x"}, "here")
    assert fill("a {v} {{v}} {w}", {"v": "x", "w": "{v}"}, "here") == "a x {v} {v}"


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".", "a/b", "", ".x", "x\n", "a\\b", "result", "capability-x"])
def test_the_name_of_a_suite_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    values = {"sets": {"forget": {"data": {"path": "f.jsonl"}}}, "variables": {"v": name}}
    for given in (name or "{v}", "{v}"):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**values, "name": given}))
        with pytest.raises(RecipeError, match="name"):
            load_suite(str(tmp_path / "s.yaml"))
