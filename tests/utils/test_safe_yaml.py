"""Test reading YAML that somebody else wrote: the same values as PyYAML, and a message within seconds for anything hostile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from llm_forget.cli.options import parse_command_line
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.capability.local_task import read_task
from llm_forget.evaluation.suite import load_suite
from llm_forget.utils.build import build, load_recipe
from llm_forget.utils.safe_yaml import MOST_BYTES, MOST_LEVELS, NotPlainYaml, load_yaml, read_yaml

_LEVELS = "\n".join(f"l{one}: &l{one} [{', '.join([f'*l{one - 1}'] * 9)}]" for one in range(1, 10))
BOMBS = {
    "aliases nine levels deep": (f"l0: &l0 [a]\n{_LEVELS}\n", "more than 100,000 values"),
    "aliases in merges": (
        "l0: &l0 {a: 1}\n"
        + "\n".join(f"l{one}: &l{one} {{<<: [{', '.join([f'*l{one - 1}'] * 9)}], k{one}: 1}}" for one in range(1, 10)),
        "more than 100,000 values",
    ),
    "a list in itself": ("x: &x [*x]\n", "never ends"),
    "a mapping in itself": ("&x {a: {b: *x}}\n", "never ends"),
    "a key in itself": ("&x {? [*x] : 1}\n", "never ends"),
    "100,000 brackets": ("a: " + "[" * 100_000, "levels deep"),
    "100,000 levels of indentation": (
        "".join(" " * level + f"k{level}:\n" for level in range(MOST_LEVELS + 5)),
        "levels deep",
    ),
    "100,001 keys": ("".join(f"k{one}: 1\n" for one in range(100_001)), "more than 100,000 values"),
    "a number in base 60": ("a: " + ":".join(["1"] * 200_000), "a number of"),
    "a number of 100,000 digits": ("a: 0x" + "f" * 100_000, "a number of"),
    "five megabytes": ("a: " + "b" * 5_000_000, "million characters"),
    "a tag that runs code": ("a: !!python/object/apply:os.getcwd []\n", "tag"),
    "a key given twice": ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
    "an unknown alias": ("a: *b\n", "undefined alias"),
    "an impossible date": ("a: 2024-13-45\n", "month"),
    "two documents": ("a: 1\n---\nb: 2\n", "document"),
}


@pytest.mark.parametrize("text", [text for text, _ in BOMBS.values()], ids=list(BOMBS))
@pytest.mark.parametrize("door", ["recipe", "suite", "task"])
def test_a_hostile_file_ends_in_a_message_within_seconds(text: str, door: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(text)
    read: Any = {"recipe": lambda: load_recipe(UnlearnRecipe, file), "suite": lambda: load_suite(str(file)),
                 "task": lambda: read_task(str(file))}[door]  # fmt: skip
    started = time.process_time()
    with pytest.raises(UserError, match=r"not (valid|plain) YAML"):
        read()
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("text", "words"), list(BOMBS.values()), ids=list(BOMBS))
def test_the_message_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(NotPlainYaml, match=words):
        load_yaml(text)


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 1000, "&a {b: *a}"])
def test_a_hostile_value_on_the_command_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--method .*: not a YAML value"):
        parse_command_line(UnlearnRecipe, ["--method", text])


def test_values_that_alias_each_other_are_independent() -> None:
    found = load_yaml("a: &a {x: [1]}\nb: *a\n")
    found["a"]["x"].append(2)
    assert found == {"a": {"x": [1, 2]}, "b": {"x": [1]}}


def test_a_file_that_is_no_text_or_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: \xff")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    for name, words in (("binary", "UTF-8"), ("large", "at most 4 MB"), ("gone", "cannot be read")):
        with pytest.raises(NotPlainYaml, match=words):
            read_yaml(tmp_path / name)


# With allow_unicode PyYAML writes U+0085 as a line break between quotes, and itself reads a space.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(letters, max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(letters, max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(value=plain, flow=st.sampled_from([True, False, None]))
@settings(max_examples=examples(100), deadline=None)
def test_reads_back_what_pyyaml_writes(value: Any, flow: bool | None) -> None:
    assert load_yaml(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value


def test_a_value_from_python_without_end_is_refused() -> None:
    endless: dict[str, Any] = {"name": "npo"}
    endless["again"] = endless
    wide: Any = ["a"]
    for _ in range(9):
        wide = [wide] * 9
    for value, words in ((endless, "levels deep"), ({"name": "npo", "wide": wide}, "values")):
        with pytest.raises(RecipeError, match=words):
            build(UnlearnRecipe, {"method": value}, "this call")


HUGE = [("data.forget.limit", 1e30), ("adapter.alpha", 10**300), ("train.save_steps", 2**63)]


@pytest.mark.parametrize(("key", "value"), HUGE)
def test_numbers_beyond_any_setting_are_refused(key: str, value: float) -> None:
    values = ["--model.name", "m", "--data.forget.path", "f", "--method.name", "npo", "--output_dir", "o"]
    with pytest.raises(RecipeError, match=key.rpartition(".")[2]):
        parse_command_line(UnlearnRecipe, [*values, f"--{key}", yaml.safe_dump(value).split("\n")[0]])
