"""Benchmarks run by lm-eval: local files of well-known question sets, or any lm-eval task by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.errors import DataError, UserError
from llm_forget.evaluation.aggregate import Estimate, aggregate, proportion
from llm_forget.evaluation.capability.language_model import lm_eval_model
from llm_forget.evaluation.capability.local_task import answer_questions, quiet, read_task, text_lines, unchanged
from llm_forget.evaluation.capability.task_file import find_task, for_lm_eval, read_settings
from llm_forget.evaluation.passes.cache import Cache
from llm_forget.evaluation.recipe import BenchmarksConfig
from llm_forget.utils.extras import require_extra

_EMBEDDED = "general_knowledge"
_LOCAL = ("arc_easy_local", "mmlu_local", "truthfulqa_mc1_local", "truthfulqa_mc2_local", "openbookqa_local")
_FROM_HUB = ("arc_easy", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "openbookqa")
_QUICK = 100  # questions per local task in the quick preset


def planned_tasks(config: BenchmarksConfig) -> list[tuple[str, int | None]]:
    """The tasks of a configuration, each with its limit."""
    tasks: dict[str, int | None] = {}
    if config.preset is not None:
        tasks[_EMBEDDED] = config.limit
        local = config.data_dir is not None
        if local or config.preset == "full":
            cut = _QUICK if config.preset == "quick" and config.limit is None else config.limit
            tasks |= dict.fromkeys(_LOCAL if local else _FROM_HUB, cut)
    tasks |= dict.fromkeys(config.tasks, config.limit)
    return list(tasks.items())


def check_benchmarks(config: BenchmarksConfig) -> None:
    """Check before any computation that everything is available.

    Raises:
        UserError: lm-eval is not installed, or a task or its file does not exist.
    """
    require_extra("lm_eval", "a benchmark", "eval")
    for task, limit in planned_tasks(config):
        if is_local(task):
            read_local(task, config.data_dir, limit)


def run_benchmarks(
    config: BenchmarksConfig,
    model: Any,
    tokenizer: Any,
    *,
    accelerator: Any = None,
    cache: Cache | None = None,
) -> dict[str, dict[str, Any]]:
    """Run tasks on a loaded model.

    Args:
        config: the tasks and their settings.
        model: a causal language model, wrapped or not.
        tokenizer: its tokenizer.
        accelerator: an ``accelerate.Accelerator``. Its processes share the questions of local tasks; each process runs
            lm-eval's own tasks completely.
        cache: cache for the answers to local tasks, or None.

    Returns:
        Task → metric → ``value``, ``n``, ``n_nan``, ``low``, ``high``.

    Raises:
        UserError: a task cannot be used, or lm-eval cannot fetch its data.
    """
    found: dict[str, dict[str, Any]] = {}
    for task, limit in planned_tasks(config):
        if not is_local(task):
            found |= _run_by_name(task, limit, config.batch_size, model, tokenizer)
            continue
        settings, rows = read_local(task, config.data_dir, limit)
        columns = ("acc",) if "process_results" in settings else ("acc", "acc_norm")
        scores = answer_questions(
            model,
            tokenizer,
            settings,
            rows,
            columns=columns,
            batch_size=config.batch_size,
            accelerator=accelerator,
            cache=cache,
        )
        found[settings["task"]] = {label: asdict(_mean(scores[:, at])) for at, label in enumerate(columns)}
    return found


def is_local(task: str) -> bool:
    """Whether a task is a local file: a task of the package, or one given by its path."""
    return task.endswith((".yaml", ".yml")) or find_task(task).is_file()


def read_local(task: str, data_dir: str | None, limit: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a local task's settings and questions. With a limit, the questions are evenly spread over the file.

    Args:
        task: a name such as ``mmlu_local``, or the path of a task file. Its ``data_file`` is read from ``data_dir``; a task
            without ``data_file`` has its questions in the same folder as the task file.
        data_dir: the folder with the data files.
        limit: number of questions; None for all.

    Raises:
        UserError: the task or the folder does not exist, or the questions cannot be read.
    """
    _, config = read_settings(task)
    if "data_file" not in config:
        settings, questions = read_task(task)
        return settings, _spread([question.row for question in questions], limit)
    file = str(config.pop("data_file"))
    if data_dir is None:
        raise UserError(f"the task {task} needs {file}; set benchmarks.data_dir to the folder that contains it")
    source = Path(data_dir).expanduser() / file
    if not source.is_file():
        raise UserError(f"benchmarks.data_dir: {data_dir} has no {file}, which the task {task} needs; put it there")
    by_shares = config.pop("scored_by", None) == "shares"
    rows = [_question(line, by_shares, f"{file}:{number}") for number, line in text_lines(source)]
    if not rows:
        raise DataError(f"{source} has no questions; give a file with one question per line")
    if by_shares:
        config["process_results"] = share_of_true
    chosen = _spread(rows, limit)
    for_lm_eval(config, chosen)  # before a model is loaded
    return config, chosen


def _spread(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """Choose ``limit`` rows, evenly spread, because files are ordered by subject."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def _question(line: str, by_shares: bool, place: str) -> dict[str, Any]:
    """Convert a line of any known file format to question, choices and answer, and for TruthfulQA which choices are true."""
    try:
        row = json.loads(line)
        if "mc1_targets" in row:
            marks = row["mc2_targets" if by_shares else "mc1_targets"]
            true = [int(mark) for mark in marks.values()]
            return {"question": row["question"], "choices": list(marks), "answer": true.index(1), "true": true}
        if "answerKey" in row:
            choices = row["question"]["choices"]
            labels = [choice["label"] for choice in choices]
            texts = [choice["text"] for choice in choices]
            return {"question": row["question"]["stem"], "choices": texts, "answer": labels.index(row["answerKey"])}
        row["choices"][row["answer"]]
        kept = ("question", "choices", "answer", "subject")
        return {key: row[key] for key in kept if key in row}
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{place} is not a question ({type(error).__name__}); each line must be "
            '{"question": text, "choices": [texts], "answer": index}, or in the format of OpenBookQA or TruthfulQA'
        ) from None


def share_of_true(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Compute TruthfulQA's MC2: the probability of the true answers divided by the probability of all given answers.

    Args:
        doc: a question, with ``true``: 1 or 0 for each choice.
        results: (log-prob in nats, whether greedy) of each choice.

    Returns:
        ``acc`` in [0, 1]. For log-probs ln 0.2 (true), ln 0.1 (true) and ln 0.1 it is ¾.

    Source: Lin et al. 2022, arXiv:2109.07958, section 3.2.
    """
    logps = [result[0] for result in results]
    masses = [exp(logp - max(logps)) for logp in logps]
    return {"acc": sum(mass for mass, true in zip(masses, doc["true"], strict=True) if true) / sum(masses)}


def _run_by_name(
    task: str, limit: int | None, batch_size: int, model: Any, tokenizer: Any
) -> dict[str, dict[str, Any]]:
    """Run one of lm-eval's own tasks, or a group of them; its data come from the hub or from the hub's cache."""
    try:
        with quiet(), unchanged(model):
            import lm_eval
            from lm_eval.tasks import TaskManager

            manager = TaskManager()
            known = task in manager.all_tasks
            result = None
            if known:
                result = lm_eval.simple_evaluate(
                    model=lm_eval_model(model, tokenizer, batch_size),
                    tasks=[task],
                    task_manager=manager,
                    limit=limit,
                    bootstrap_iters=0,
                    log_samples=True,
                )
    except Exception as error:
        raise UserError(
            f"lm-eval could not run the task {task} ({type(error).__name__}: {str(error)[:200]}); its data come from the "
            f"hub, so it needs the network once. Without network, use the local tasks {', '.join(_LOCAL)} with data_dir"
        ) from error
    if not known or result is None:
        nearest = difflib.get_close_matches(task, [*manager.all_tasks, *_LOCAL, _EMBEDDED], n=3)
        raise UserError(f"lm-eval has no task {task}; similar names: {', '.join(nearest) or 'none'}")
    return read_lm_eval(result)


def read_lm_eval(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert lm-eval's result to our format. A group's number is over all questions of its tasks.

    Args:
        result: the result of ``simple_evaluate``, with its samples.
    """
    found = {}
    groups = result.get("group_subtasks", {})
    for task in result["results"]:
        samples = [sample for part in _leaves(task, groups) for sample in result["samples"].get(part, [])]
        labels = {label.partition(",")[0] for label in result["results"][task] if "," in label}
        scores = {
            label: [
                float(sample[label]) for sample in samples if isinstance(sample.get(label), int | float | np.number)
            ]
            for label in sorted(labels)
        }
        found[task] = {label: asdict(_mean(np.array(values))) for label, values in scores.items() if values}
    return {task: metrics for task, metrics in found.items() if metrics}


def _leaves(task: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    inside = groups.get(task) or []
    return [leaf for one in inside for leaf in _leaves(one, groups)] if inside else [task]


def _mean(scores: Any) -> Estimate:
    """Wilson interval if all scores are 0 or 1; otherwise the mean with its interval."""
    return proportion(scores) if np.isin(scores, (0.0, 1.0)).all() else aggregate(scores)
