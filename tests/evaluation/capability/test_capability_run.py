"""Test that lm-eval's accuracy equals direct scoring of each choice, without output and without the network."""

from __future__ import annotations

import json
import logging
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_examples import PLANTED, TASK, Rank, tiny_model, write_jsonl, write_task

from llm_forget.data.examples import example_id
from llm_forget.errors import DataError, UserError
from llm_forget.evaluation.capability.local_task import read_task, run_capability
from llm_forget.testing import tiny_tokenizer


def by_hand(model, tokenizer, row: dict) -> tuple[bool, bool]:
    """Return the choices with the highest summed log-prob after the question, in total and per character."""
    context = f"Question: {row['question']}\nAnswer:"
    sums = []
    for choice in row["choices"]:
        start = len(tokenizer(context)["input_ids"])
        ids = torch.tensor([tokenizer(f"{context} {choice}")["input_ids"]])
        with torch.no_grad():
            logps = model.eval()(ids).logits[0].log_softmax(-1)
        sums.append(sum(float(logps[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])))
    lengths = [len(choice) for choice in row["choices"]]
    return np.argmax(sums) == row["answer"], np.argmax(np.array(sums) / lengths) == row["answer"]


def test_accuracy_equals_direct_scoring(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    task = write_task(tmp_path, questions=12)
    rows = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    random.seed(5)
    torch.manual_seed(5)
    state = random.getstate(), torch.random.get_rng_state()
    found = run_capability(model, tokenizer, task=str(task), batch_size=5)
    assert random.getstate() == state[0]
    assert torch.equal(torch.random.get_rng_state(), state[1])
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level != logging.ERROR
    expected = {
        example_id(row["question"], row["choices"][row["answer"]]): by_hand(model, tokenizer, row) for row in rows
    }
    assert found.correct == expected
    assert len({acc for acc, _ in expected.values()}) == 2
    assert found.acc.value == pytest.approx(np.mean([acc for acc, _ in expected.values()]))
    assert found.acc_norm.value == pytest.approx(np.mean([norm for _, norm in expected.values()]))
    assert found.acc.low < found.acc.value < found.acc.high
    assert PLANTED not in repr(found)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    task = str(write_task(tmp_path, questions=7))
    whole = run_capability(model, tokenizer, task=task)
    kept: list[torch.Tensor] = []

    class Accelerator(Rank):
        device = torch.device("cpu")

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            kept.append(tensor)
            return torch.stack(kept).sum(0)

    run_capability(model, tokenizer, task=task, accelerator=Accelerator(2, 0))
    assert run_capability(model, tokenizer, task=task, accelerator=Accelerator(2, 1)) == whole


def test_no_network_request_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run_capability(tiny_model(), tiny_tokenizer(), task=str(write_task(tmp_path)), limit=2)


def test_mistakes_in_a_task_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_such_task does not exist"):
        read_task("no_such_task")
    (tmp_path / "alone.yaml").write_text(TASK)
    with pytest.raises(DataError, match=r"no questions: put alone\.jsonl in the folder"):
        read_task(str(tmp_path / "alone.yaml"))
    (tmp_path / "alone.jsonl").write_text("")
    with pytest.raises(DataError, match="it is empty"):
        read_task(str(tmp_path / "alone.yaml"))
    good = {"question": "a?", "choices": ["b", "c"], "answer": 0}
    rows = [good, {"question": "d?", "choices": ["b"], "answer": 4}, {"question": "e?"}, good]
    write_jsonl(tmp_path / "alone.jsonl", rows)
    with pytest.raises(DataError, match=r"question 2: IndexError; question 3: KeyError; question 4 repeats question 1"):
        read_task(str(tmp_path / "alone.yaml"))
    (tmp_path / "alone.yaml").write_text("doc_to_text: !function utils.go")
    with pytest.raises(UserError, match="not plain YAML"):
        read_task(str(tmp_path / "alone.yaml"))
    (tmp_path / "alone.yaml").write_text("task: x")
    with pytest.raises(UserError, match="no doc_to_text"):
        read_task(str(tmp_path / "alone.yaml"))
