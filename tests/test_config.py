"""Test recipes: shipped files parse, mistakes are named with a remedy, and only RecipeError is raised."""

from __future__ import annotations

import dataclasses
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from profiles import examples

from llm_forget.cli.options import comments, describe, parse_command_line
from llm_forget.config import AdapterConfig, FinetuneRecipe, StopConfig, TrainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.utils.build import build, load_recipe, to_yaml

SHIPPED = sorted(
    file
    for folder in ("recipes", "scripts/tofu_mini")
    for file in (ROOT / folder).rglob("*.yaml")
    if "model" in (yaml.safe_load(file.read_text()) or {})
)
# All files with a launch line in the header: recipes, suites and evaluations.
HEADED = sorted({*SHIPPED, *(ROOT / "eval").glob("*.yaml"), *(ROOT / "eval/suites").glob("*.yaml")})
LAUNCHED = re.compile(r"(?:recipes|eval|scripts)/[\w/.-]+\.(?:yaml|py|sh|md)\b")
SMALL: dict[str, Any] = {
    "model": {"name": "somewhere"},
    "data": {"forget": {"path": "forget.jsonl"}},
    "method": {"name": "npo"},
    "output_dir": "out",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def with_(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


def message(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        build(UnlearnRecipe, values, "recipe.yaml")
    return str(caught.value)


def test_there_are_shipped_recipes() -> None:
    assert {"demo", "tofu"} <= {path.parent.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_parses_and_round_trips(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(path.read_text())["data"]  # only unlearning has a forget set; it can do without a method
    kind = UnlearnRecipe if "forget" in data else FinetuneRecipe
    recipe = load_recipe(kind, path)
    written = tmp_path / "again.yaml"
    written.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(kind, written) == recipe
    assert str(path.relative_to(ROOT)) in path.read_text(), "the launch line names the file"


@pytest.mark.parametrize("path", HEADED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_named_in_a_header_exists(path: Path) -> None:
    text = path.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert [name for name in LAUNCHED.findall(header) if not (ROOT / name).is_file()] == []
    assert "../" not in text, "no folder next to the project is named"
    assert path.stem in header or "{" in header, "the launch line names the recipe or suite"


@pytest.mark.parametrize(
    "path",
    ["recipes/README.md", "recipes/accelerate/README.md", "recipes/methods.md", "eval/README.md",
     "scripts/tofu_mini/README.md", "scripts/benchmark.md"],
)  # fmt: skip
def test_every_file_named_in_a_page_exists(path: str) -> None:
    text = (ROOT / path).read_text()
    assert [name for name in LAUNCHED.findall(text) if not (ROOT / name).is_file()] == []
    assert "../" not in text, "no folder next to the project is named"


def test_a_shipped_recipe_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(UnlearnRecipe, "recipes/demo/npo.yaml").method["name"] == "npo"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (with_(methd={}), ["methd: unknown key", "did you mean 'method'"]),
        (with_(train={"epoch": 3}), ["train.epoch: unknown key", "did you mean 'epochs'"]),
        (with_(data={"forget": {"pth": "a.jsonl"}}), ["data.forget.pth: unknown key", "did you mean 'path'"]),
        (with_(adapter={"rnk": 3}), ["adapter.rnk: unknown key", "did you mean 'rank'"]),
        (with_(xyzzy=1), ["xyzzy: unknown key", "known here: model, data"]),
        (with_(train={"epochs": "many"}), ["train.epochs", "'many'"]),
        (with_(train={"epochs": 1.5}), ["train.epochs", "1.5"]),
        (with_(train={"batch_size": 0}), ["train", "batch_size is 0", "1 or more"]),
        (with_(train={"learning_rate": -1}), ["learning_rate is -1", "greater than 0"]),
        (with_(train={"learning_rate": float("nan")}), ["learning_rate is nan", "greater than 0"]),
        (with_(adapter={"rank": 0}), ["adapter", "rank is 0"]),
        (with_(model={"name": "x", "dtype": "float16"}), ["model.dtype", "'float32'", "'float16'"]),
        (with_(stop={"forget_target": 3.0}), ["stop", "forget_target is 3", "between 0 and 1"]),
        (with_(stop={"tolerance": 0.0}), ["stop", "tolerance is 0", "above 0"]),
        (with_(stop={"forget_target": "soon"}), ["stop.forget_target", "'holdout'", "'soon'"]),
        (with_(stop={"utility_floor": float("nan")}), ["utility_floor is nan", "between 0 and 1"]),
        (with_(retain={"weight": float("nan")}), ["retain", "weight is nan"]),
        (with_(retain={"weight": -1}), ["retain", "weight is -1"]),
        (with_(forget_weight=-1), ["forget_weight is -1"]),
        (with_(encoding={"max_length": 1}), ["encoding", "max_length is 1"]),
        (with_(model="somewhere"), ["model", "'somewhere'"]),
        (
            with_(data={"forget": {"path": "a", "optional": True}}),
            ["data", "forget is optional", "validation and holdout"],
        ),
        (with_(data=[]), ["data"]),
        (with_(method="npo"), ["method", "'npo'"]),
        ({"method": {"name": "npo"}}, ["model: is missing", "data: is missing", "output_dir: is missing"]),
    ],
)
def test_a_mistake_is_named_with_its_location_and_remedy(values: dict[str, Any], words: list[str]) -> None:
    said = message(values)
    assert all(word in said for word in words), said


def test_all_mistakes_are_reported_at_once() -> None:
    said = message(
        {"model": {"nme": "x"}, "method": {}, "train": {"epochs": "x", "batch_size": []}, "sed": 1, "data": {}}
    )
    for word in ("model.nme: unknown", "model.name: is missing", "train.epochs:", "train.batch_size:", "sed: unknown"):
        assert said.count(f"  - {word}") == 1, said
    assert "data.forget: is missing" in said
    assert "output_dir: is missing" in said


def test_overrides_in_both_spellings_and_of_every_type(file: Path) -> None:
    arguments = ["--config", str(file), "--train.learning_rate", "1e-3", "--train.epochs=3", "--adapter", "null"]
    arguments += ["--data.retain.path", "r.jsonl", "--stop.per-example=false", "--retain", "{name: kl, weight: 2}"]
    arguments += ["--method.beta=1e-1", "--stop.forget_target", "5e-2"]
    recipe = parse_command_line(UnlearnRecipe, arguments)
    assert recipe.train.learning_rate == 1e-3
    assert isinstance(recipe.train.learning_rate, float)
    assert recipe.train.epochs == 3
    assert recipe.adapter is None
    assert recipe.data.retain is not None
    assert recipe.data.retain.path == "r.jsonl"
    assert recipe.stop.per_example is False
    assert (recipe.retain.name, recipe.retain.weight) == ("kl", 2.0)
    assert recipe.stop.forget_target == 0.05
    assert recipe.data.forget.path == "forget.jsonl", "what is not overridden stays"


def test_an_override_with_an_equals_sign_in_its_value(file: Path) -> None:
    assert parse_command_line(UnlearnRecipe, [f"--config={file}", "--output_dir=runs/a=b"]).output_dir == "runs/a=b"


def test_a_section_given_in_part_keeps_the_other_defaults_of_the_recipe() -> None:
    arguments = ["--model.name=a", "--data=[{path: f.jsonl}]", "--output_dir=runs/a", "--train.epochs=3"]
    recipe = parse_command_line(FinetuneRecipe, [*arguments, "--adapter.rank=8"])
    assert (recipe.train.epochs, recipe.train.batch_size) == (3, 16)
    assert recipe.adapter == AdapterConfig(rank=8, alpha=64)


@pytest.mark.parametrize("recipe_class", [UnlearnRecipe, FinetuneRecipe])
def test_the_help_shows_the_defaults_of_the_recipe(recipe_class: Any) -> None:
    shown = describe(recipe_class)
    train = {item.name: item for item in fields(recipe_class)}["train"].default_factory()  # type: ignore[misc]
    assert f"--train.epochs  int [{train.epochs}]" in shown
    assert f"--train.batch_size  int [{train.batch_size}]" in shown


def test_a_recipe_from_options_only() -> None:
    arguments = ["--model.name=a", "--data.forget.path=f.jsonl", "--method", "{name: npo}", "--output_dir=runs/a"]
    recipe = parse_command_line(UnlearnRecipe, arguments)
    assert (recipe.model.name, recipe.method, recipe.stop.every) == ("a", {"name": "npo"}, 3)


def test_help_lists_every_field_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            parse_command_line(UnlearnRecipe, ["--config", "gone.yaml", argument])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "--train.epochs  int [10]" in shown
        assert "--output_dir  str (required)\n      The run folder." in shown
        assert "--model.quantization  nf4|int8|null [null]" in shown
        assert "--data.retain  {…}|null [null]" in shown
        assert shown.count("Read only the first `limit` rows.") == 1, "the same fields are described once"
        assert "Fields as --data.forget." in shown


def test_each_comment_belongs_to_the_field_below_it() -> None:
    assert comments(StopConfig)["every"] == "Optimiser steps between checks."
    assert "learning_rate" in comments(TrainConfig)
    assert comments(TrainConfig)["weight_decay"] == "Weight decay of the optimiser."
    for recipe_class in (UnlearnRecipe, FinetuneRecipe, EvalRecipe):
        assert "--model.name" in describe(recipe_class)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config FILE"),
        (["--train.epochs", "3"], "output_dir: is missing"),
        (["train.epochs", "3"], "'train.epochs' is not an option"),
        (["--"], "not an option"),
        (["--config"], "--config has no value"),
        (["--config", "FILE", "--train.epochs"], "--train.epochs has no value"),
        (["--config", "FILE", "--output_dir.sub", "3"], "output_dir is a value"),
        (["--config", "FILE", "--train.epochs", "[1"], "not a YAML value"),
        (["--config", "FILE", "--train.epochs", "2024-13-45"], "not a YAML value"),
        (["--config", "FILE", "--train.epoch", "3"], "did you mean 'epochs'"),
        (["--config", "gone.yaml"], "gone.yaml does not exist"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], words: str, file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_command_line(UnlearnRecipe, [str(file) if part == "FILE" else part for part in arguments])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- a\n- b\n", "holds list, not keys and values"),
        (b"", "holds NoneType, not keys and values"),
        (b"model: [1\n", "not valid YAML"),
        (b"model: 2024-13-45\n", "not valid YAML"),
        (b"a: !!python/object:os.system {}\n", "not valid YAML"),
        (b"a: \xff\xfe\n", "not valid YAML"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        load_recipe(UnlearnRecipe, path)


def test_explicit_defaults_equal_the_defaults() -> None:
    bare = build(UnlearnRecipe, SMALL, "small")
    assert build(UnlearnRecipe, yaml.safe_load(to_yaml(bare)), "again") == bare
    assert (bare.train, bare.stop) == (TrainConfig(), StopConfig())


def _keys() -> list[str]:
    found: set[str] = set()
    for recipe in (UnlearnRecipe, FinetuneRecipe, TrainConfig, StopConfig):
        found |= {item.name for item in dataclasses.fields(recipe)}
    return sorted(found | {"name", "path", "forget", "retain", "rank", "weight", "columns", "max_length"})


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates() | st.binary(max_size=3)
)
keys = st.sampled_from(_keys()) | st.text(max_size=4) | st.integers() | st.none() | st.booleans()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
wild = st.dictionaries(keys, values, max_size=6)
near = st.dictionaries(st.sampled_from(_keys()), values, max_size=4).map(lambda changes: {**SMALL, **changes})


@pytest.mark.parametrize("kind", [UnlearnRecipe, FinetuneRecipe])
@given(content=wild | near, overrides=st.dictionaries(st.sampled_from(["train.epochs", "data.forget.path", "a..b", "."]),
                                                      st.text(max_size=6), max_size=2))  # fmt: skip
@settings(
    deadline=None,
    max_examples=examples(200),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_only_recipe_errors_are_raised(
    kind: type, content: dict[Any, Any], overrides: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with suppress(RecipeError):
        recipe = load_recipe(kind, path, overrides)
        assert load_recipe(kind, path, overrides) == recipe or "nan" in to_yaml(recipe)


@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_content_raises_only_recipe_errors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with suppress(RecipeError):
        load_recipe(UnlearnRecipe, path)
