"""Test task files from somebody else: no code of theirs runs, none runs for long, and every refusal says why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_examples import TASK, write_jsonl, write_task
from extras import needs

from llm_forget.errors import DataError, UserError
from llm_forget.evaluation.capability.benchmarks import check_benchmarks
from llm_forget.evaluation.capability.local_task import read_task
from llm_forget.evaluation.capability.task_file import for_lm_eval
from llm_forget.evaluation.evaluate import evaluate_capability
from llm_forget.evaluation.recipe import BenchmarksConfig, CapabilityRecipe
from llm_forget.evaluation.suite import check_suite, load_suite
from llm_forget.utils.build import build

ROWS = [
    {"question": "Is it?", "choices": ["yes", "no"], "answer": 1},
    {"question": "2 and 2?", "choices": ["4", "0"], "answer": 0},
]
PLAIN = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}


def a_task(folder: Path, **settings: Any) -> str:
    """Write a task file with two questions, and return its path."""
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "t.jsonl", ROWS)
    (folder / "t.yaml").write_text(yaml.safe_dump(PLAIN | settings))
    return str(folder / "t.yaml")


ATTACKS = [
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{{ question.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__cl' ~ 'ass__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('touch %s').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ '{0.__class__}'.format(question) }}",
    "{{ ('{0.__cl' ~ 'ass__}')|format(question) }}{{ ('%%s'|format(1)).format.__self__ }}",
    "{{ question|map(attribute='__class__')|first }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch %s') }}",
    "{% extends '/etc/hostname' %}",
]


FIELDS = ["doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"]


@pytest.mark.parametrize(
    ("attack", "field"),
    [
        *((attack, FIELDS[place % 5]) for place, attack in enumerate(ATTACKS)),
        *((ATTACKS[0], field) for field in FIELDS),
    ],
)
def test_a_template_runs_no_code(attack: str, field: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    template = attack.replace("%s", str(planted))
    with pytest.raises(UserError, match=f"{field} cannot be rendered"):
        for_lm_eval({"task": "t", **PLAIN, field: template}, ROWS)
    assert not planted.exists()


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{% set s = namespace(t='x') %}{% for _ in range(60) %}{% set s.t = s.t ~ s.t %}{% endfor %}{{ s.t }}",
    "{{ ('a' * 40 ~ '!')|regex_replace('(a+)+$', '') }}",
    "{{ question|center(1000000000) }}",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' }}{% endmacro %}{{ f(60) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x' * 1000000 }}",
    "{{ [1]|slice(1000000000)|list|length }}",
]


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_never_ends_is_stopped(bomb: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="doc_to_text cannot be rendered"):
        for_lm_eval({"task": "t", **PLAIN, "doc_to_text": bomb}, ROWS)
    assert time.monotonic() - started < 60


REFUSED = {
    "include": "other.yaml",
    "group": "mmlu",
    "use_prompt": "promptsource:a",
    "process_docs": "utils.go",
    "process_results": "utils.go",
    "filter_list": [{"name": "a", "filter": [{"function": "regex", "regex_pattern": "(a+)+$"}]}],
    "fewshot_config": {"sampler": "first_n", "samples": [ROWS[0]]},
    "generation_kwargs": {"until": ["."]},
    "doc_to_image": "{{ 1 }}",
    "doc_to_audio": "{{ 1 }}",
    "doc_to_decontamination_query": "{{ 1 }}",
    "class": "!function a.B",
    "unsafe_code": True,
    "num_fewshot": 5,
    "repeats": 3,
    "should_decontaminate": True,
    "output_type": "generate_until",
    "metric_list": ["acc"],
    "scored_by": "luck",
    "data_file": "../../secret.jsonl",
    "doc_to_text": 3,
    "doc_to_choice": {"a": 1},
    "doc_to_target": [0],
    "description": 5,
    "task": "../../../planted",
}


@pytest.mark.parametrize("key", REFUSED)
def test_every_setting_that_is_more_than_a_zero_shot_question_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        read_task(a_task(tmp_path, **{key: REFUSED[key]}))


@pytest.mark.parametrize(
    "metrics",
    [
        [{"metric": "bleu"}],
        [{"metric": "acc", "hf_evaluate": True}],
        [{"metric": "acc", "aggregation": "perplexity"}],
        {"acc": 1},
    ],
)
def test_metrics_that_lm_eval_would_fetch_are_refused(metrics: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric_list"):
        read_task(a_task(tmp_path, metric_list=metrics))


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", ".hidden", "..", "", "x\n", "a" * 300])
def test_the_name_of_a_task_or_suite_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task is"):
        read_task(a_task(tmp_path, task=name))
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a?", "answer": "b"}])
    suite = tmp_path / "s.yaml"
    suite.write_text(
        yaml.safe_dump({"sets": {"forget": {"data": {"path": str(tmp_path / "rows.jsonl")}}}, "attacks": None})
    )
    if name:
        with pytest.raises(UserError, match="cannot be a path"):
            load_suite(str(suite), {"name": "'{v}'", "variables.v": yaml.safe_dump(name)})


@needs("lm_eval")
def test_every_door_refuses_before_a_model_is_loaded(tmp_path: Path) -> None:
    """The model does not exist, so a task that passed would end in another message."""
    planted = tmp_path / "planted"
    task = a_task(tmp_path, doc_to_text=ATTACKS[0].replace("%s", str(planted)))
    suite = tmp_path / "s.yaml"
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a?", "answer": "b"}])
    rows = {"forget": {"data": {"path": str(tmp_path / "rows.jsonl")}}}
    suite.write_text(yaml.safe_dump({"sets": rows, "attacks": None, "capability": {"task": task}}))
    alone = {"model": {"name": "no/model"}, "output_dir": str(tmp_path / "out"), "task": task}
    doors: list[Any] = [
        lambda: check_suite(load_suite(str(suite))),
        lambda: check_benchmarks(BenchmarksConfig(tasks=[task])),
        lambda: evaluate_capability(build(CapabilityRecipe, alone, "here")),
    ]
    for door in doors:
        with pytest.raises(UserError, match="doc_to_text cannot be rendered"):
            door()
    assert not planted.exists()


def test_templates_render_as_lm_eval_would(tmp_path: Path) -> None:
    """A rendered number is an index, also if it is one of the choices; a text from a column is one of the choices."""
    rows = [{"question": "2 and 2? ", "choices": ["1", "4"], "answer": 1, "right": "4", "by": "a_b"}]
    config = {
        "task": "t", "output_type": "multiple_choice", "doc_to_text": "{{by | replace('_', ' ')}}: {{question.strip()}}\n",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "description": "About {{by}}", "target_delimiter": "",
    }  # fmt: skip
    settings, made = for_lm_eval(config, rows)
    assert made == [{"text": "a b: 2 and 2?\n", "choices": ["1", "4"], "answer": 1, "description": "About a_b"}]
    assert settings["doc_to_text"] == "text"
    assert settings["description"] == "description"
    assert settings["target_delimiter"] == ""
    assert for_lm_eval({**config, "doc_to_target": "right"}, rows)[1][0]["answer"] == 1
    assert for_lm_eval({**config, "doc_to_choice": ["A", "B"]}, rows)[1][0]["choices"] == ["A", "B"]
    assert for_lm_eval({**config, "doc_to_choice": "{{['x', 'y']}}", "doc_to_target": 0}, rows)[1][0]["answer"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"doc_to_text": "{{nothing}}"},
            r"doc_to_text cannot be rendered for question 1 \(UndefinedError\).*answer, choices",
        ),
        ({"doc_to_text": "{{question"}, r"\(TemplateSyntaxError\)"),
        ({"doc_to_text": "{{ {}[question] }}"}, r"\(UndefinedError\)"),
        ({"doc_to_text": "choices"}, "question 1: doc_to_text is no text"),
        ({"doc_to_choice": "{{question}}"}, "question 1: doc_to_choice is no list"),
        ({"doc_to_choice": ["a"]}, "two or more"),
        ({"doc_to_choice": "{{'[' * 500}}"}, "doc_to_choice is no list"),
        ({"doc_to_target": "{{7}}"}, "question 1: doc_to_target is not one of the 2 choices"),
        ({"doc_to_target": "nobody"}, "doc_to_target is not one"),
        ({"doc_to_target": "question"}, "doc_to_target is not one"),
    ],
)
def test_a_template_that_fits_no_question_is_named(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, DataError), match=words) as caught:
        read_task(a_task(tmp_path, **settings))
    assert "Is it" not in str(caught.value)


@pytest.mark.parametrize(
    "line", [b"\xff", b"[" * 100_000, b"[]", b"5", b'{"question": "a", "choices": ["b", "c"], "answer": -1}']
)
def test_a_question_file_that_is_damaged_is_named(line: bytes, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "tiny.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError):
        read_task(str(task))
    assert "question" in TASK
