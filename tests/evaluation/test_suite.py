"""Test a suite from its file to its results, on a tiny model and tiny data."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_examples import PLANTED, tiny_model, write_jsonl, write_sets, write_task

from llm_forget.config import ModelConfig
from llm_forget.data.encode import EncodingConfig, encode
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.evaluation.results import as_json, read_results, write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import GenerationConfig, SetConfig, make_metrics, read_set, unique_ids
from llm_forget.evaluation.suite import (
    CapabilityConfig,
    PerplexityConfig,
    Suite,
    load_suite,
)
from llm_forget.model import generate
from llm_forget.model.load import load_model
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.shipped import shipped


def make_suite(folder: Path, **changes: Any) -> Suite:
    write_sets(folder)
    suite = Suite(
        name="tiny",
        sets={
            "forget": SetConfig(DataSource(str(folder / "forget.jsonl"))),
            "retain": SetConfig(DataSource(str(folder / "retain.jsonl")), stride=2, utility="probability"),
        },
        generation=GenerationConfig(max_new_tokens=6, batch_size=4),
        perplexity=PerplexityConfig(str(folder / "neutral.txt"), window=40, stride=20),
    )
    return replace(suite, **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Suite, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("suite")
    suite = make_suite(folder, capability=CapabilityConfig(str(write_task(folder)), limit=5))
    return folder, suite, run_suite(suite, tiny_model(), tiny_tokenizer())


def test_contents_of_a_result(done: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, _, results = done
    assert results["schema"] == 2
    assert results["suite"] == "tiny"
    forget, retain = results["sets"]["forget"], results["sets"]["retain"]
    assert (forget["n"], forget["forget"], retain["n"], retain["forget"]) == (5, True, 3, False)
    of_answers = {"probability", "exact_memorisation", "extraction_strength", "entropy"}
    of_texts = {"rougeL_recall", "rougeL_f1", "rouge1_recall", "refusal", "repetition_3", "collapse"}
    of_others = {"normalised_probability", "truth_ratio_arithmetic", "truth_ratio_geometric"}
    assert set(forget["metrics"]) == of_answers | of_texts | of_others
    assert set(retain["metrics"]) == of_answers | of_texts
    one = forget["metrics"]["probability"]
    assert one["low"] <= one["value"] <= one["high"]
    assert (one["n"], one["n_nan"], one["bounds"], one["forgotten"]) == (5, 0, [0, 1], "low")
    assert retain["metrics"]["probability"]["forgotten"] == "none"
    assert results["forget_quality"] is None
    assert list(results["model_utility"]) == ["without_truth_ratio"]
    assert results["perplexity"]["value"] > 1
    assert results["capability"]["acc"]["n"] == 5
    assert set(results["seconds"]) == {"forget", "retain", "perplexity", "capability"}


def test_scores_equal_direct_forward_passes(done: tuple[Path, Suite, dict[str, Any]]) -> None:
    """Compute probability and truth ratio of one example with a forward pass for each answer."""
    _, suite, results = done
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    example = read_examples(suite.sets["forget"].data)[3]

    def mean(answer: str) -> float:
        row = encode(tokenizer, example, suite.encoding, answer)
        loss_from = torch.tensor([row.input_ids])
        with torch.no_grad():
            logps = model(loss_from).logits[0].log_softmax(-1)
        places = range(row.prompt_length, len(row.input_ids))
        return float(np.mean([float(logps[place - 1, row.input_ids[place]]) for place in places]))

    found = results["sets"]["forget"]["examples"][example.id]
    right, wrong = mean(example.paraphrases[0]), [mean(answer) for answer in example.wrong_answers]
    assert found["probability"] == pytest.approx(math.exp(mean(example.answer)), rel=1e-4)
    assert found["truth_ratio_arithmetic"] == pytest.approx(np.mean(np.exp(wrong)) / math.exp(right), rel=1e-4)
    assert found["truth_ratio_geometric"] == pytest.approx(math.exp(np.mean(wrong) - right), rel=1e-4)


def test_aggregates_follow_from_the_scores(done: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, _, results = done
    forget = results["sets"]["forget"]
    column = {label: [scores[label] for scores in forget["examples"].values()] for label in forget["metrics"]}
    assert forget["metrics"]["probability"]["value"] == pytest.approx(np.mean(column["probability"]))
    ratios = np.array(column["truth_ratio_geometric"])
    assert forget["metrics"]["truth_ratio_geometric"]["value"] == pytest.approx(np.minimum(ratios, 1 / ratios).mean())


def test_no_text_of_the_data_is_written(done: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    folder, suite, results = done
    write_results(results, tmp_path / "eval" / "tiny.json")
    text = (tmp_path / "eval" / "tiny.json").read_text()
    assert PLANTED not in text
    assert "zanzibar" not in text
    assert str(folder) not in json.dumps(results["settings"])
    assert "generated" not in text
    (scores,) = (tmp_path / "eval").glob("tiny.*.parquet")
    assert "zanzibar" not in scores.read_bytes().decode("latin-1")
    assert read_results(tmp_path / "eval" / "tiny.json") == results  # complete, with NaN as null
    assert sorted(entry.name for entry in (tmp_path / "eval").iterdir()) == [scores.name, "tiny.json"]
    kept = run_suite(replace(suite, capability=None), tiny_model(), tiny_tokenizer(), keep_text=True)
    assert all("generated" in scores for scores in kept["sets"]["forget"]["examples"].values())


def test_the_same_run_gives_the_same_numbers(done: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, suite, results = done
    again = run_suite(suite, tiny_model(), tiny_tokenizer())
    assert {**again, "seconds": 0} == {**results, "seconds": 0}


def test_what_the_scores_tell_of_an_answer_is_not_generated(
    memorised_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memorised answer needs no generation; an unknown one the tokens after the first miss. The texts are the same."""
    asked: list[int] = []
    real = generate._continue

    def counted(model: Any, prompts: Any, *rest: Any) -> Any:
        asked.append(len(prompts))
        return real(model, prompts, *rest)

    monkeypatch.setattr(generate, "_continue", counted)
    sets = {"retain": SetConfig(DataSource(str(memorised_folder / "forget.jsonl")))}
    suite = Suite(name="tiny", sets=sets, generation=GenerationConfig(max_new_tokens=30, batch_size=4))
    model, tokenizer = load_model(ModelConfig(str(memorised_folder / "model")))
    rows = read_set("retain", sets["retain"])
    other = [replace(rows[0], answer=f"{rows[0].answer} Or so."), replace(rows[1], answer="Not this."), *rows[2:]]
    found, counts = {}, []
    for known in (True, False):
        if not known:
            monkeypatch.setattr("llm_forget.evaluation.sets._begun", lambda rows, *_: [()] * len(rows))
        result = run_suite(suite, model, tokenizer, keep_text=True, in_memory={"retain": other})
        found[known] = [one["generated"] for one in result["sets"]["retain"]["examples"].values()]
        counts.append(sum(asked))
        asked.clear()
    assert found[True] == found[False] == [row.answer for row in rows]
    assert counts == [2, 4]


def test_forget_quality_against_an_oracle(done: tuple[Path, Suite, dict[str, Any]], tmp_path: Path) -> None:
    _, suite, results = done
    suite = replace(suite, capability=None, perplexity=None)
    write_results(results, tmp_path / "oracle.json")
    oracle = read_results(tmp_path / "oracle.json")
    same = run_suite(suite, tiny_model(), tiny_tokenizer(), controls={"oracle": oracle})
    assert same["forget_quality"]["forget"]["geometric"]["pvalue"] == 1
    assert same["forget_quality"]["forget"]["arithmetic"]["n"] == 5
    other = copy.deepcopy(oracle)
    for scores in other["sets"]["forget"]["examples"].values():
        scores["truth_ratio_geometric"] += 100
    apart = run_suite(suite, tiny_model(), tiny_tokenizer(), controls={"oracle": other})
    # 2 · 5!² / 10!
    assert apart["forget_quality"]["forget"]["geometric"]["pvalue"] == pytest.approx(2 / 252)
    assert apart["forget_quality"]["forget"]["arithmetic"]["pvalue"] == 1


def test_an_oracle_measured_on_other_data_is_refused(done: tuple[Path, Suite, dict[str, Any]]) -> None:
    _, suite, oracle = done
    suite = replace(suite, capability=None, perplexity=None)
    fewer = replace(suite, sets={**suite.sets, "forget": replace(suite.sets["forget"], limit=4)})
    prompted = replace(suite, encoding=EncodingConfig(system_prompt="Be short."))
    for changed in (fewer, prompted):
        with pytest.raises(UserError, match="not measured on the same forget set"):
            run_suite(changed, tiny_model(), tiny_tokenizer(), controls={"oracle": oracle})
    with pytest.raises(UserError, match="schema None"):
        run_suite(suite, tiny_model(), tiny_tokenizer(), controls={"oracle": {}})


def test_a_broken_model_gives_counted_nan_and_valid_json(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    suite = make_suite(tmp_path)
    suite = replace(suite, sets={name: replace(one, generate=False) for name, one in suite.sets.items()})
    results = run_suite(suite, model, tiny_tokenizer())
    for label, one in results["sets"]["forget"]["metrics"].items():
        assert (one["value"], one["low"], one["n"], one["n_nan"]) == (None, None, 0, 5), label
    utility = results["model_utility"]["without_truth_ratio"]
    assert (utility["value"], utility["n_nan"]) == (None, 1)
    assert (results["perplexity"]["value"], results["perplexity"]["n"]) == (None, 0)
    write_results(results, tmp_path / "results.json")
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)


def test_examples_without_wrong_answers_are_counted(tmp_path: Path) -> None:
    suite = make_suite(tmp_path, perplexity=None)
    rows = [json.loads(line) for line in (tmp_path / "forget.jsonl").read_text().splitlines()]
    del rows[2]["perturbed_answer"]
    write_jsonl(tmp_path / "forget.jsonl", rows)
    results = run_suite(suite, tiny_model(), tiny_tokenizer())
    one = results["sets"]["forget"]["metrics"]["truth_ratio_arithmetic"]
    assert (one["n"], one["n_nan"]) == (4, 1)


def test_stride_limit_and_answers(tmp_path: Path) -> None:
    suite = make_suite(tmp_path, perplexity=None)
    chosen = replace(suite.sets["forget"], answers=["answer"], stride=2, limit=2, generate=False)
    results = run_suite(replace(suite, sets={"forget": chosen}), tiny_model(), tiny_tokenizer())
    assert set(results["sets"]["forget"]["metrics"]) == {
        "probability",
        "exact_memorisation",
        "extraction_strength",
        "entropy",
    }
    ids = [example.id for example in read_examples(chosen.data)]
    assert list(results["sets"]["forget"]["examples"]) == [ids[0], ids[2]]
    assert results["model_utility"] is None
    wanted = {"retain": SetConfig(suite.sets["retain"].data, answers=["answer", "wrong_answers"])}
    with pytest.raises(DataError, match="no row has a perturbed_answer"):
        run_suite(replace(suite, sets=wanted), tiny_model(), tiny_tokenizer())


def test_repeated_examples_keep_their_scores_apart() -> None:
    assert unique_ids(["a", "b", "a", "a"]) == ("a", "b", "a#2", "a#3")


def test_a_custom_metric_is_one_file(tmp_path: Path) -> None:
    """The file has a dataclass with per_example; the suite names the file by its path."""
    (tmp_path / "length.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "@dataclass(frozen=True)\n"
        "class Length:\n"
        "    scale: float = 1.0\n"
        "    paper: ClassVar = 'none'\n"
        "    bounds: ClassVar = (0.0, float('inf'))\n"
        "    forgotten: ClassVar = 'none'\n"
        "    needs: ClassVar = ('answer',)\n"
        "    label: ClassVar = 'length'\n"
        "    def per_example(self, known):\n"
        "        return known.answer.lengths * self.scale\n"
    )
    suite = make_suite(
        tmp_path, perplexity=None, metrics=[{"name": str(tmp_path / "length.py"), "scale": 2}, "probability"]
    )
    results = run_suite(suite, tiny_model(), tiny_tokenizer())
    assert set(results["sets"]["forget"]["metrics"]) == {"length", "probability"}
    assert results["sets"]["forget"]["metrics"]["length"]["bounds"] == [0, None]


def test_invalid_metrics_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'probability'"):
        make_metrics(["probabilty"])
    with pytest.raises(RecipeError, match="definition"):
        make_metrics([{"name": "truth_ratio", "definition": "harmonic"}])
    with pytest.raises(RecipeError, match="rougeL_recall twice"):
        make_metrics(["rouge", {"name": "rouge", "part": "recall"}])
    with pytest.raises(RecipeError, match="no name"):
        make_metrics([{"part": "f1"}])


def test_missing_packages_are_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_forget.utils import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-forget\[eval\]'"):
        run_suite(make_suite(tmp_path), None, None)


def test_perplexity_equals_one_forward_pass(tmp_path: Path) -> None:
    """For a text of one window: exp of the mean loss over all tokens except the first, or over all tokens after BOS."""
    (tmp_path / "short.txt").write_text("the end is in the box", encoding="utf-8")
    suite = make_suite(tmp_path, perplexity=PerplexityConfig(str(tmp_path / "short.txt")))
    suite = replace(suite, sets={"retain": replace(suite.sets["retain"], generate=False)})
    for bos in (False, True):
        tokenizer = tiny_tokenizer(bos=bos)
        model = tiny_model(vocab=len(tokenizer)).eval()
        ids = torch.tensor([tokenizer("the end is in the box")["input_ids"]])
        results = run_suite(suite, model, tokenizer)
        with torch.no_grad():
            loss = float(model(ids, labels=ids).loss)
        assert results["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert results["perplexity"]["n"] == ids.shape[1] - 1


SUITE = """
sets:
  forget:
    data: {path: forget.jsonl}
generation: {max_new_tokens: 5}
"""


def test_a_suite_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SUITE)
    suite = load_suite(str(tmp_path / "mine.yaml"), {"sets.forget.limit": "2", "capability": "{limit: 3}"})
    assert suite.name == "mine"
    assert suite.sets["forget"].limit == 2
    assert suite.generation.max_new_tokens == 5
    assert suite.capability == CapabilityConfig(limit=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sets: {forget: {data: {path: a}, limt: 3}}", "did you mean 'limit'"),
        ("sets: {forget: {data: {path: a, fromat: qa}}}", "did you mean 'format'"),
        ("sets: {forget: {data: {path: a}, stride: 0}}", "stride is 0"),
        ("sets: {forget: {data: {path: a}, answers: [wrong_answers]}}", "lacks `answer`"),
        ("sets: {}", "sets is empty"),
        ("sets: {forget: {data: {path: a}}}\ngeneration: {max_new_token: 3}", "did you mean 'max_new_tokens'"),
        ("sets: {forget: {data: {path: a}}}\ncapability: {taks: x}", "did you mean 'task'"),
        ("set: {}", "did you mean 'sets'"),
        ("sets: {forget: {data: {path: a}}}\nleft_out: [nothing]", "left_out"),
    ],
)
def test_mistakes_in_a_suite_file_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(line)
    with pytest.raises(RecipeError, match=message):
        load_suite(str(tmp_path / "bad.yaml"))


def test_unknown_suite_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"demo.*tofu"):
        load_suite("no_such_suite")


def test_every_shipped_suite_loads() -> None:
    files = sorted(shipped("eval/suites").glob("*.yaml"))
    assert {"custom", "demo", "muse", "tofu", "wmdp"} == {file.stem for file in files}
    for file in files:
        assert load_suite(file.stem).name.startswith(file.stem)
        assert load_suite(f"eval/suites/{file.name}") == load_suite(file.stem)


def test_as_json() -> None:
    value = as_json({1: np.float32(0.5), "a": np.array([1, 2]), "b": (math.nan, -math.inf, True), "c": np.int64(3)})
    assert value == {"1": 0.5, "a": [1, 2], "b": [None, None, True], "c": 3}
    json.dumps(value, allow_nan=False)
