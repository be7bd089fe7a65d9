"""Run a multiple-choice task from a local file with lm-eval, on a model that is already loaded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.data.examples import example_id
from llm_forget.errors import DataError, UserError
from llm_forget.evaluation.aggregate import Estimate, proportion
from llm_forget.evaluation.capability.language_model import lm_eval_model
from llm_forget.evaluation.capability.task_file import for_lm_eval, read_settings
from llm_forget.evaluation.passes.asking import is_served
from llm_forget.evaluation.passes.cache import Arrays, Cache, remember
from llm_forget.evaluation.tokens import Floats
from llm_forget.model.batching import evaluating, sum_over_processes
from llm_forget.model.head import below_wrapper
from llm_forget.utils.digests import json_digest
from llm_forget.utils.extras import require_extra

_SPLIT = "test"


@dataclass(frozen=True)
class Capability:
    """Result of a multiple-choice task.

    Attributes:
        task: its name.
        acc: share of questions whose right choice has the highest summed log-prob, with its Wilson interval.
        acc_norm: the same with log-probs divided by the choice's length in characters.
        correct: question id → (acc, acc_norm) of the question, in the order of the file, for paired comparisons.
    """

    task: str
    acc: Estimate
    acc_norm: Estimate
    correct: dict[str, tuple[bool, bool]] = field(repr=False)


@dataclass(frozen=True)
class _Question:
    id: str
    row: dict[str, Any] = field(repr=False)


def run_capability(
    model: Any,
    tokenizer: Any,
    *,
    task: str = "general_knowledge",
    limit: int | None = None,
    batch_size: int = 16,
    accelerator: Any = None,
    cache: Cache | None = None,
) -> Capability:
    """Run a multiple-choice task on a loaded model, without the network.

    Args:
        model: a causal language model or a PEFT model.
        tokenizer: its tokenizer.
        task: a task of the package, or the path of an lm-eval task file (YAML). The questions are in a ``.jsonl`` of the
            same name in the same folder, one ``{"question", "choices", "answer": index}`` per line.
        limit: only the first questions, up to this number.
        batch_size: answer choices per forward pass.
        accelerator: an ``accelerate.Accelerator``; its processes share the questions.
        cache: cache for the answers, stored as right or wrong; None for no cache.

    Returns:
        Accuracy with its interval, and whether each question was answered correctly.

    Raises:
        UserError: lm-eval is not installed, or the task cannot be used.
    """
    require_extra("lm_eval", "the capability test", "eval")
    config, questions = read_task(task, limit)
    rows = [question.row for question in questions]
    found = answer_questions(
        model,
        tokenizer,
        config,
        rows,
        columns=("acc", "acc_norm"),
        batch_size=batch_size,
        accelerator=accelerator,
        cache=cache,
    )
    correct = {question.id: (bool(acc), bool(norm)) for question, (acc, norm) in zip(questions, found, strict=True)}
    return Capability(str(config["task"]), proportion(found[:, 0]), proportion(found[:, 1]), correct)


def read_task(task: str, limit: int | None = None) -> tuple[dict[str, Any], list[_Question]]:
    """Read a task's settings and questions.

    Args:
        task: name or path, as for ``run_capability``.
        limit: only the first questions, up to this number.

    Raises:
        UserError: the task does not exist or is not a task file.
        DataError: there are no questions, or some cannot be used; the message lists them.
    """
    path, config = read_settings(task)
    file = path.with_suffix(".jsonl")
    if not file.is_file():
        raise DataError(f"the capability task {task} has no questions: put {file.name} in the folder of {path.name}")
    questions, problems = _read_questions([line for _, line in text_lines(file)][:limit])
    if problems or not questions:
        listed = "; ".join(problems[:10]) or "it is empty"
        raise DataError(
            f"{file.name} cannot be used: {listed}. Each line must be "
            '{"question": text, "choices": [texts], "answer": index}'
        )
    for_lm_eval(config, [question.row for question in questions])  # before a model is loaded
    return config, questions


def text_lines(file: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines of a file that are not empty.

    Raises:
        DataError: the file is not text in UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_questions(lines: Sequence[str]) -> tuple[list[_Question], list[str]]:
    questions: list[_Question] = []
    problems = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            right = row["choices"][row["answer"]]
            name = example_id(row["question"], right)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"question {number}: {type(error).__name__}")
            continue
        if name in seen:
            problems.append(f"question {number} repeats question {seen[name]}")
        seen[name] = number
        questions.append(_Question(name, row))
    return questions, problems


def answer_questions(
    model: Any,
    tokenizer: Any,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    *,
    columns: Sequence[str],
    batch_size: int = 16,
    accelerator: Any = None,
    cache: Cache | None = None,
) -> Floats:
    """Score the choices of questions with lm-eval; the processes share the questions.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        config: the settings of a task file, from ``read_settings``.
        rows: its questions.
        columns: the requested metrics.
        batch_size: answer choices per forward pass.
        accelerator: an ``accelerate.Accelerator`` or None.
        cache: cache for the numbers, or None.

    Returns:
        (n, columns) the numbers of each question.

    Raises:
        UserError: the task does not return these metrics for each question.
    """
    config, rows = for_lm_eval(config, rows)
    processes, own = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    mine = list(range(own, len(rows), processes))

    def compute() -> Arrays:
        found = np.zeros((len(rows), len(columns)))
        if mine:
            with unchanged(model):
                found[mine] = _run(model, tokenizer, config, [rows[index] for index in mine], columns, batch_size)
        return {"scores": sum_over_processes(found, accelerator)}

    plain = {key: value for key, value in config.items() if not callable(value)}
    parts = {"task": plain, "rows": json_digest(rows), "columns": list(columns), "batch_size": batch_size}
    return np.asarray(remember(cache, accelerator, "capability", parts, compute)["scores"], dtype=np.float64)


def _run(
    model: Any,
    tokenizer: Any,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    columns: Sequence[str],
    batch_size: int,
) -> Floats:
    with quiet():
        import lm_eval
        from datasets import Dataset
        from lm_eval.tasks import TaskManager

        data = Dataset.from_list(rows)
        # The rows are already split over the processes; lm-eval sees only this process's share.
        own = config | {"custom_dataset": lambda **_: {_SPLIT: data}, "test_split": _SPLIT, "num_fewshot": 0}
        lm = lm_eval_model(model, tokenizer, batch_size)
        result = lm_eval.simple_evaluate(
            model=lm,
            tasks=[own],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
    if result is None:
        raise UserError("lm-eval returned no result; run the capability test in one process")
    samples = sorted(result["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    if len(samples) != len(rows) or not set(columns) <= set(samples[0]):
        has = sorted(set(samples[0]) & {"acc", "acc_norm"}) if samples else []
        raise UserError(
            f"the capability task {config['task']} returned {len(samples)} results for {len(rows)} questions, with the "
            f"metrics {has}; it must be a multiple_choice task with {' and '.join(columns)}"
        )
    return np.array([[float(sample[column]) for column in columns] for sample in samples])


def unchanged(model: Any) -> AbstractContextManager[Any]:
    """Context in which a model in this process is in eval mode; nothing for one behind a server."""
    return nullcontext() if is_served(model) else evaluating(below_wrapper(model))


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which lm-eval prints no logs or progress bars. The random state is restored at the end."""
    import random

    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    names = ("lm_eval", "datasets")
    levels = [logging.getLogger(name).level for name in names]
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # tqdm reads TQDM_DISABLE only when it is imported, which is often earlier, so its output is also redirected
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()), _silent_subprocesses():
            yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
        if bars is None:
            os.environ.pop("TQDM_DISABLE")
        else:
            os.environ["TQDM_DISABLE"] = bars
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


@contextmanager
def _silent_subprocesses() -> Iterator[None]:
    """Context that discards file descriptor 2: lm-eval calls git for a commit, which fails loudly outside a checkout."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
