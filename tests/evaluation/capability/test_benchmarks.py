"""Test benchmarks with lm-eval: local files in several formats, presets, and lm-eval's results."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_examples import tiny_model, write_jsonl, write_task
from extras import needs
from places import SHARED

from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.evaluation.capability.benchmarks import (
    check_benchmarks,
    planned_tasks,
    read_lm_eval,
    read_local,
    run_benchmarks,
    share_of_true,
)
from llm_forget.evaluation.recipe import BenchmarksConfig
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.build import build

CAPABILITY = SHARED / "data" / "capability"
needs_files = pytest.mark.skipif(not CAPABILITY.is_dir(), reason="the question sets are not next to the project")
LOCAL = ["arc_easy_local", "mmlu_local", "truthfulqa_mc1_local", "truthfulqa_mc2_local", "openbookqa_local"]


def write_data(folder: Path) -> Path:
    """Write a few questions in the format of each file."""
    for name in ("arc", "mmlu", "truthfulqa", "openbookqa"):
        (folder / name).mkdir(parents=True)
    plain = [{"question": f"{n} is?", "choices": ["red", "a blue", "on", "the"], "answer": n % 4} for n in range(8)]
    write_jsonl(folder / "arc" / "arc_easy_test.jsonl", [*plain, plain[0]])  # a repeated question is allowed here
    write_jsonl(folder / "mmlu" / "val.jsonl", [{**row, "subject": "high_school"} for row in plain])
    true = [
        {
            "question": f"What of {n}?",
            "mc1_targets": {"none": 1, f"all {n}": 0},
            "mc2_targets": {"none": 1, "not any": 1, f"all {n}": 0},
        }
        for n in range(3)
    ]
    write_jsonl(folder / "truthfulqa" / "mc_817.jsonl", true)
    choices = [{"text": "tin", "label": "A"}, {"text": "a tea", "label": "B"}]
    open_book = [{"question": {"stem": f"The {n} is", "choices": choices}, "answerKey": "AB"[n % 2]} for n in range(4)]
    write_jsonl(folder / "openbookqa" / "test.jsonl", open_book)
    return folder


@pytest.mark.slow
def test_local_tasks_are_scored_by_the_log_probs_of_choices(tmp_path: Path) -> None:
    """Check OpenBookQA's format and MC2's shares against values computed by hand."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = BenchmarksConfig(tasks=LOCAL, data_dir=str(write_data(tmp_path)))
    check_benchmarks(config)
    found = run_benchmarks(config, model, tokenizer)
    assert {name: one["acc"]["n"] for name, one in found.items()} == dict(zip(LOCAL, [9, 8, 3, 3, 4], strict=True))
    assert "acc_norm" not in found["truthfulqa_mc2_local"]

    def logp(context: str, choice: str) -> float:
        start, row = len(tokenizer(context)["input_ids"]), torch.tensor([tokenizer(f"{context} {choice}")["input_ids"]])
        with torch.no_grad():
            logps = model.eval()(row).logits[0].log_softmax(-1)
        return sum(float(logps[place - 1, row[0, place]]) for place in range(start, row.shape[1]))

    right = [np.argmax([logp(f"The {n} is", text) for text in ("tin", "a tea")]) == n % 2 for n in range(4)]
    assert found["openbookqa_local"]["acc"]["value"] == pytest.approx(np.mean(right))
    shares = []
    for n in range(3):
        masses = np.exp([logp(f"Q: What of {n}?\nA:", text) for text in ("none", "not any", f"all {n}")])
        shares.append(masses[:2].sum() / masses.sum())
    assert found["truthfulqa_mc2_local"]["acc"]["value"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert found["truthfulqa_mc2_local"]["acc"]["seed"] is None


def test_share_of_true_answers() -> None:
    """(0.2 + 0.1) / (0.2 + 0.1 + 0.1) = ¾; a common factor of e^−2000, which is 0 in doubles, cancels."""
    logps = [(math.log(mass) - 2000, False) for mass in (0.2, 0.1, 0.1)]
    assert share_of_true({"true": [1, 1, 0]}, logps)["acc"] == pytest.approx(0.75)


def test_presets() -> None:
    quick = planned_tasks(BenchmarksConfig(preset="quick"))
    assert quick == [("general_knowledge", None)]
    local = planned_tasks(BenchmarksConfig(preset="quick", data_dir="x"))
    assert local == [("general_knowledge", None), *[(name, 100) for name in LOCAL]]
    assert dict(planned_tasks(BenchmarksConfig(preset="full", data_dir="x"))) == dict.fromkeys(
        ["general_knowledge", *LOCAL]
    )
    hub = [name for name, _ in planned_tasks(BenchmarksConfig(preset="full", tasks=["hellaswag"]))]
    assert hub == [
        "general_knowledge",
        "arc_easy",
        "mmlu",
        "truthfulqa_mc1",
        "truthfulqa_mc2",
        "openbookqa",
        "hellaswag",
    ]
    with pytest.raises(RecipeError, match="neither preset nor tasks"):
        build(BenchmarksConfig, {}, "here")
    with pytest.raises(RecipeError, match="limit is 0"):
        build(BenchmarksConfig, {"preset": "quick", "limit": 0}, "here")


def test_a_limit_is_spread_over_the_file(tmp_path: Path) -> None:
    """A limit of 3 on 8 rows takes the first, the middle and the last, since files are ordered by subject."""
    _, rows = read_local("mmlu_local", str(write_data(tmp_path)), 3)
    assert [row["question"] for row in rows] == ["0 is?", "4 is?", "7 is?"]


def test_missing_files_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs mmlu/val\.jsonl; set benchmarks\.data_dir"):
        check_benchmarks(BenchmarksConfig(tasks=["mmlu_local"]))
    with pytest.raises(UserError, match=r"has no arc/arc_easy_test\.jsonl"):
        check_benchmarks(BenchmarksConfig(preset="quick", data_dir=str(tmp_path)))
    write_data(tmp_path)
    (tmp_path / "mmlu" / "val.jsonl").write_text('{"question": "a?", "choices": ["b"], "answer": 3}\n')
    with pytest.raises(DataError, match=r"mmlu/val\.jsonl:1 is not a question \(IndexError\)"):
        check_benchmarks(BenchmarksConfig(tasks=["mmlu_local"], data_dir=str(tmp_path)))
    (tmp_path / "mmlu" / "val.jsonl").write_text("")
    with pytest.raises(DataError, match="has no questions"):
        check_benchmarks(BenchmarksConfig(tasks=["mmlu_local"], data_dir=str(tmp_path)))


@pytest.mark.slow
@needs("lm_eval")
def test_a_custom_task_by_its_path(tmp_path: Path) -> None:
    task = str(write_task(tmp_path))
    found = run_benchmarks(BenchmarksConfig(tasks=[task], limit=4), tiny_model(), tiny_tokenizer())
    assert found["tiny"]["acc"]["n"] == 4


@needs("lm_eval")
def test_a_name_unknown_to_lm_eval_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index of one task, since reading lm-eval's own thousands takes ten seconds."""
    import lm_eval.tasks

    (tmp_path / "hellaswag.yaml").write_text("task: hellaswag\ndataset_path: json\n")
    few = functools.partial(lm_eval.tasks.TaskManager, include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    with pytest.raises(UserError, match=r"lm-eval has no task hellaswagg; similar names: hellaswag"):
        run_benchmarks(BenchmarksConfig(tasks=["hellaswagg"]), tiny_model(), tiny_tokenizer())


def test_results_of_lm_eval_are_read_with_intervals() -> None:
    """A group with 1 of 1 and 0 of 3 right has accuracy 1 of 4, not the mean ½; other scores get a t interval."""
    result = {
        "results": {
            "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "mmlu"},
            "mmlu_a": {"acc,none": 1.0, "alias": "a"},
            "mmlu_b": {"acc,none": 0.0, "alias": "b"},
            "story": {"bleu,none": 2.0, "text,none": 1.0, "alias": "c"},
        },
        "group_subtasks": {"mmlu": ["mmlu_a", "mmlu_b"], "story": []},
        "samples": {
            "mmlu_a": [{"acc": 1.0}],
            "mmlu_b": [{"acc": 0.0}] * 3,
            "story": [{"bleu": 1.0, "text": "x"}, {"bleu": 3.0, "text": "y"}],
        },
    }
    found = read_lm_eval(result)
    assert (found["mmlu"]["acc"]["value"], found["mmlu"]["acc"]["n"]) == (0.25, 4)
    assert found["mmlu_a"]["acc"]["value"] == 1.0
    assert found["story"]["bleu"]["value"] == 2.0
    # standard error 1, t quantile 12.71 with one degree of freedom
    assert found["story"]["bleu"]["low"] == pytest.approx(2 - 12.7062, rel=1e-4)
    assert set(found["story"]) == {"bleu"}


@needs_files
def test_the_real_files_are_read() -> None:
    config = BenchmarksConfig(preset="full", data_dir=str(CAPABILITY))
    check_benchmarks(config)
    sizes = {name: len(read_local(name, str(CAPABILITY), None)[1]) for name in LOCAL}
    assert sizes == dict(zip(LOCAL, [2376, 1531, 817, 817, 500], strict=True))
    for name in LOCAL:
        for row in read_local(name, str(CAPABILITY), None)[1]:
            assert 0 <= row["answer"] < len(row["choices"]), name
    json.dumps(read_local("truthfulqa_mc2_local", str(CAPABILITY), 2)[1])
