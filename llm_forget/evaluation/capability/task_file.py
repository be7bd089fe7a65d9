"""lm-eval task files as data: read the settings that are known, refuse everything that could run code or read other files.

lm-eval itself runs what a task file says: Python functions (``!function``), other files (``include``), prompts and metrics of
other packages, and Jinja templates without a sandbox. Here a file may hold the settings of a zero-shot multiple-choice task and
nothing else. Its templates are rendered in ``sandbox``, and lm-eval gets the finished texts.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_forget.errors import DataError, UserError
from llm_forget.evaluation.capability import sandbox
from llm_forget.utils.bounded import TooMuchError, run_bounded
from llm_forget.utils.files import is_plain_name
from llm_forget.utils.safe_yaml import NotPlainYaml, read_yaml
from llm_forget.utils.shipped import shipped

# Settings that only tell lm-eval where its data are, or what the task is called. The rows are passed in memory.
_UNUSED = frozenset(
    [
        *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "training_split", "validation_split"),
        *("test_split", "fewshot_split", "task_alias", "tag", "metadata"),
    ]
)
_TEXTS = ("doc_to_text", "doc_to_choice", "doc_to_target", "description", "gen_prefix")
_DELIMITERS = ("target_delimiter", "fewshot_delimiter")
# Settings that have one value here, and why.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "output_type": (("multiple_choice",), "only multiple-choice tasks are scored from a file"),
    "num_fewshot": ((0, None), "a task file is run without examples"),
    "repeats": ((1,), "each question is asked once"),
    "should_decontaminate": ((False, None), "there is no other data to compare with"),
    "unsafe_code": ((False, None), "no code of a task file is run"),
    "scored_by": (("shares",), "the only other score is the share of the true answers"),
}
_METRICS = ("acc", "acc_norm")
_OURS = ("task", "data_file", "metric_list")
_LONGEST = 200_000  # characters of one rendered text


def find_task(task: str) -> Path:
    """The file of a task: a name of the package, or the path of a YAML file. It may not exist."""
    named = is_plain_name(task) and not task.endswith((".yaml", ".yml"))
    return shipped(f"eval/capability/{task}.yaml") if named else Path(task)


def read_settings(task: str) -> tuple[Path, dict[str, Any]]:
    """Read a task's file and check all settings.

    Args:
        task: a task of the package, or the path of an lm-eval task file.

    Returns:
        The file, and its settings with the name of the task.

    Raises:
        UserError: the file does not exist, is not plain YAML, or has a setting that is not supported.
    """
    path = find_task(task)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise UserError(
            f"the capability task {task} does not exist; give a name such as general_knowledge, or the path of a .yaml file"
        )
    try:
        config = read_yaml(path)
    except NotPlainYaml as error:
        raise UserError(
            f"the capability task {task} is not plain YAML (tags such as !function are not supported): {error}"
        ) from error
    if not isinstance(config, dict) or "doc_to_text" not in config:
        raise UserError(f"the capability task {task} is not an lm-eval task: it has no doc_to_text")
    config = {"task": path.stem, **config}
    if problems := [problem for key, value in config.items() if (problem := _problem(key, value)) is not None]:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"the capability task {task} cannot be used:\n{listed}")
    return path, config


def _problem(key: Any, value: Any) -> str | None:
    """Why a setting cannot be used; None if it can."""
    if key in _ONLY:
        allowed, why = _ONLY[key]
        return None if value in allowed and type(value) in map(type, allowed) else f"{key} is {value!r:.60}: {why}"
    if key == "task":
        fits = isinstance(value, str) and is_plain_name(value)
        return None if fits else f"task is {value!r:.60}; a name has letters, digits, '_', '-' and '.', and no path"
    if key == "metric_list":
        return (
            None
            if _plain_metrics(value)
            else f"metric_list: give {{metric: NAME}} with a name of {', '.join(_METRICS)}"
        )
    if key == "data_file":
        inside = isinstance(value, str) and value and not Path(value).is_absolute() and ".." not in Path(value).parts
        return None if inside else f"data_file is {value!r:.60}; give a file inside benchmarks.data_dir"
    if key in _DELIMITERS or key in ("description", "gen_prefix"):
        return None if value is None or isinstance(value, str) else f"{key} is {value!r:.60}; give a text"
    if key in _TEXTS:
        return _template_problem(key, value)
    if key in _UNUSED:
        return None
    return (
        f"{str(key)[:60]} is not supported in a task file, because lm-eval would run code or read other files for it, or the "
        f"score would be another one; supported are {', '.join((*_OURS, *_TEXTS, *_DELIMITERS, *_ONLY))}"
    )


def _template_problem(key: str, value: Any) -> str | None:
    if isinstance(value, str):
        return None
    if key == "doc_to_target" and isinstance(value, int) and not isinstance(value, bool):
        return None
    texts = value.values() if isinstance(value, dict) else value
    if key == "doc_to_choice" and isinstance(value, list | dict) and all(isinstance(one, str) for one in texts):
        return None
    return f"{key} is {value!r:.60}; give a field of the questions, or a template such as '{{{{question}}}}'"


def _plain_metrics(value: Any) -> bool:
    """Whether a ``metric_list`` holds known metrics by name, averaged, and nothing that lm-eval would look up or download."""
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and set(one) <= {"metric", "aggregation", "higher_is_better"}
        and one.get("metric") in _METRICS
        and one.get("aggregation", "mean") == "mean"
        and one.get("higher_is_better", True) is True
        for one in value
    )


def for_lm_eval(
    config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and rows for lm-eval that hold finished texts and no templates.

    Args:
        config: from ``read_settings``.
        rows: the questions.

    Returns:
        Settings whose fields name columns of the rows, and one row per question with ``text``, ``choices`` and ``answer`` (the
        index of the right choice).

    Raises:
        UserError: a template cannot be rendered, or takes too long.
        DataError: a question has no text, fewer than two choices, or no right choice.
    """
    given = {key: config.get(key) for key in _TEXTS}
    rendered = _render(config["task"], given, rows)
    made: list[dict[str, Any]] = []
    for number, (row, texts) in enumerate(zip(rows, rendered, strict=True), start=1):
        found = {key: _field(key, value, row, texts) for key, value in given.items() if value is not None}
        made.append(_question(config["task"], number, found) | ({"true": row["true"]} if "true" in row else {}))
    settings = {
        key: config[key] for key in (*_DELIMITERS, "metric_list", "process_results") if config.get(key) is not None
    }
    settings |= {"task": config["task"], "output_type": "multiple_choice", "doc_to_text": "text"}
    settings |= {"doc_to_choice": "choices", "doc_to_target": "answer"}
    return settings | {key: key for key in ("description", "gen_prefix") if any(key in row for row in made)}, made


def _field(key: str, value: Any, row: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
    """What lm-eval reads for a setting: the column it names, the rendered text (digits are an index), or the value itself."""
    if isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, str):
        return value
    if key not in texts:
        return row.get(value)
    return int(texts[key]) if key == "doc_to_target" and texts[key].isdecimal() else texts[key]


def _question(task: str, number: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row for lm-eval, checked."""

    def refuse(what: str) -> DataError:
        return DataError(f"the capability task {task}, question {number}: {what}")

    text, choices, target = (found.get(key) for key in ("doc_to_text", "doc_to_choice", "doc_to_target"))
    if not isinstance(text, str):
        raise refuse("doc_to_text is no text; tasks with several inputs are not scored from a file")
    if isinstance(choices, str):
        choices = _literal(choices)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise refuse("doc_to_choice is no list of two or more texts")
    if isinstance(target, str):
        target = choices.index(target) if target in choices else None
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < len(choices):
        raise refuse(f"doc_to_target is not one of the {len(choices)} choices or its index, counted from 0")
    more = {key: str(found[key]) for key in ("description", "gen_prefix") if found.get(key)}
    return {"text": text, "choices": choices, "answer": target, **more}


def _literal(text: str) -> Any:
    """A list as a template writes it; None if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _render(task: str, given: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Render the settings that are templates: field → text for each row."""
    columns = set(rows[0]) if rows else set()
    templates = {key: value for key, value in given.items() if isinstance(value, str) and value not in columns}
    if not templates or not rows:
        return [{} for _ in rows]
    plain = {key: value for key, value in templates.items() if "{" in value}
    fixed = {key: value for key, value in templates.items() if key not in plain}
    if not plain:
        return [dict(fixed) for _ in rows]
    found = json.loads(_in_sandbox(json.dumps({"templates": plain, "rows": list(rows), "longest": _LONGEST})))
    if "rows" not in found:
        names = ", ".join(sorted(columns))
        raise UserError(
            f"the capability task {task}: the template {found['field']} cannot be rendered"
            f"{' for question ' + str(found['row']) if found['row'] else ''} ({found['problem']}). Templates see the fields of a "
            f"question ({names}) and run in a sandbox of {sandbox.SECONDS} seconds"
        )
    return [{**fixed, **texts} for texts in found["rows"]]


@lru_cache(maxsize=8)
def _in_sandbox(request: str) -> str:
    """Run ``sandbox`` on a request, and return its answer; a process that was stopped counts as a problem of the first field."""
    try:
        return run_bounded(str(sandbox.__file__), request, seconds=sandbox.SECONDS, memory=sandbox.MEMORY)
    except TooMuchError as error:
        return json.dumps({"problem": str(error), "field": next(iter(json.loads(request)["templates"])), "row": 0})
