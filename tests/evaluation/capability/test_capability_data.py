"""Test the shipped questions and prose: well formed, balanced, and read by lm-eval as the task file defines."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import yaml
from places import ROOT

FOLDER = ROOT / "eval" / "capability"


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    lines = (FOLDER / "general_knowledge.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    return (FOLDER / "neutral.txt").read_text("utf-8").strip().split("\n\n")


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def test_there_are_enough_questions_for_a_narrow_interval(questions: list[dict[str, Any]]) -> None:
    # At 240 questions the standard error of an accuracy is at most 0.033.
    assert len(questions) >= 240


def test_every_question_has_one_right_answer_among_four(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        assert set(row) == {"question", "choices", "answer"}
        assert row["question"].endswith("?")
        assert row["question"] == row["question"].strip()
        assert len(row["choices"]) == 4
        assert len({choice.casefold() for choice in row["choices"]}) == 4
        assert type(row["answer"]) is int
        assert row["answer"] in range(4)


def test_choices_are_short_and_clean(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        for choice in row["choices"]:
            assert 1 <= len(choice.split()) <= 3, row
            assert choice == " ".join(choice.split())
            assert choice[-1] not in ".?!,;"


def test_right_answers_are_balanced_over_positions(questions: list[dict[str, Any]]) -> None:
    places = Counter(row["answer"] for row in questions)
    assert max(places.values()) - min(places.values()) <= 1
    # Shuffled, not cyclic: a position does not predict the next one.
    repeats = sum(a["answer"] == b["answer"] for a, b in pairwise(questions))
    assert 0.15 < repeats / len(questions) < 0.35


def test_the_right_answer_is_not_mostly_the_longest_or_the_shortest(questions: list[dict[str, Any]]) -> None:
    def share(best: Any) -> float:
        hits = 0.0
        for row in questions:
            lengths = [len(choice) for choice in row["choices"]]
            winners = [at for at, length in enumerate(lengths) if length == best(lengths)]
            hits += (row["answer"] in winners) / len(winners)
        return hits / len(questions)

    assert share(max) < 0.45
    assert share(min) < 0.45


def test_no_question_is_asked_twice(questions: list[dict[str, Any]]) -> None:
    asked = Counter(normal(row["question"]) for row in questions)
    assert [question for question, times in asked.items() if times > 1] == []


def test_no_two_questions_differ_only_in_word_order(questions: list[dict[str, Any]]) -> None:
    words = Counter(tuple(sorted(normal(row["question"]).split())) for row in questions)
    assert max(words.values()) == 1


def test_the_answer_is_not_in_its_question(questions: list[dict[str, Any]]) -> None:
    for row in questions:
        answer = normal(row["choices"][row["answer"]])
        if not answer.isdigit():
            assert f" {answer} " not in f" {normal(row['question'])} ", row


def test_prose_is_long_enough_for_perplexity(paragraphs: list[str]) -> None:
    assert 2_500 <= sum(len(paragraph.split()) for paragraph in paragraphs) <= 3_500
    assert len(paragraphs) >= 15
    for paragraph in paragraphs:
        assert "\n" not in paragraph
        assert 60 <= len(paragraph.split()) <= 200
        assert paragraph.endswith(".")
        assert paragraph[0].isupper()


def test_prose_has_no_repeated_paragraph_or_sentence_and_no_addresses(paragraphs: list[str]) -> None:
    sentences = Counter(sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.;]) ", paragraph))
    assert max(sentences.values()) == 1
    assert not re.search(r"@|https?:|www\.|\d{4,}", "\n".join(paragraphs))


def test_the_prose_does_not_contain_the_questions_verbatim(
    questions: list[dict[str, Any]], paragraphs: list[str]
) -> None:
    prose = normal(" ".join(paragraphs))
    assert not [row["question"] for row in questions if normal(row["question"]) in prose]


def test_the_task_file_has_the_fields_that_lm_eval_needs() -> None:
    task = yaml.safe_load((FOLDER / "general_knowledge.yaml").read_text("utf-8"))
    assert task["task"] == "general_knowledge"
    assert task["output_type"] == "multiple_choice"
    assert [metric["metric"] for metric in task["metric_list"]] == ["acc", "acc_norm"]
    # lm-eval would resolve a path from the current folder, so the caller passes the questions.
    assert "dataset_path" not in task
    assert "dataset_kwargs" not in task


def test_lm_eval_scores_each_choice_after_the_question(questions: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    lm_eval_task = pytest.importorskip("lm_eval.api.task")
    config = yaml.safe_load((FOLDER / "general_knowledge.yaml").read_text("utf-8"))
    task = lm_eval_task.ConfigurableTask(
        config={**config, "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(questions)}}
    )
    task.build_all_requests()
    requests = task.instances
    assert len(requests) == 4 * len(questions)
    first = questions[0]
    assert [request.arguments for request in requests[:4]] == [
        (f"Question: {first['question']}\nAnswer:", f" {choice}") for choice in first["choices"]
    ]

    # Accuracy is 1 if the right choice is the most likely, otherwise 0.
    right = [(0.0 if at == first["answer"] else -5.0, False) for at in range(4)]
    wrong = [(-5.0 if at == first["answer"] else 0.0, False) for at in range(4)]
    document = task.eval_docs[0]
    assert task.process_results(document, right)["acc"] == 1.0
    assert task.process_results(document, wrong)["acc"] == 0.0
