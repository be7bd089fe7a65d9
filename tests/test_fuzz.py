"""Fuzz recipes and data files: each run is complete or ends with a message, without a traceback or a partial folder."""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from profiles import examples
from rich.console import Console
from small_run import write_things

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import UserError
from llm_forget.train.run_folder import RESULT_NAME
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
NUMBERS = st.sampled_from([0, 1, 2, 3, -1, 0.0, 0.5, 1.0, -0.5, 1e-30, 1e30, 2**40, math.nan, math.inf, -math.inf])
ODD = st.one_of(
    NUMBERS,
    st.sampled_from(
        [
            None,
            True,
            False,
            "",
            " ",
            "auto",
            "nll",
            "kl",
            "npo",
            "linear",
            "sgd",
            "../x",
            "\0",
            "ü" * 300,
            [],
            {},
            [1],
            {"a": 1},
        ]
    ),
    st.text(max_size=8),
    st.lists(st.text(max_size=3), max_size=2),
)
# Keys that get no random values: they would load something else, or make a valid run very long.
KEPT = {"compile", "epochs", "path", "name", "split", "streaming"}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("fuzzed"))


def values_of(things: Path, output: str) -> dict[str, Any]:
    """Return a recipe with all sections spelled out, so that every key can be fuzzed."""
    from dataclasses import asdict

    least = {
        "model": {"name": str(things / "model"), "dtype": "float32"},
        "data": {name: {"path": str(things / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo", "beta": 0.1},
        "adapter": {"rank": 2, "alpha": 2},
        "train": {"epochs": 1, "batch_size": 2},
        "stop": {"rows": 2},
        "output_dir": output,
    }
    return asdict(build(UnlearnRecipe, least, "least"))


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in values.items():
        if key not in KEPT:
            yield (*path, key)
        if isinstance(item, dict):
            yield from places(item, (*path, key))


def outcome(values: dict[str, Any], folder: Path) -> str:
    """Run a recipe, and check that any run folder it leaves is complete."""
    try:
        unlearn(build(UnlearnRecipe, values, "fuzzed"), Console(file=io.StringIO()))
        said = "done"
    except UserError as error:
        said = str(error)
        assert said.strip()
    for result in folder.rglob(RESULT_NAME):
        assert json.loads(result.read_text())["reason"]
        assert (result.parent / "recipe.yaml").is_file()
        assert list((result.parent).glob("adapter/*.safetensors")) or list(result.parent.glob("model/*.safetensors"))
    assert not [path for path in folder.rglob(".*") if path.name.endswith((".new", ".old"))]
    return said


@pytest.mark.slow
@given(st.data())
@settings(max_examples=examples(100), deadline=None, suppress_health_check=SLOW, derandomize=True)
def test_any_value_at_any_key_of_a_recipe(things: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        values = values_of(things, str(Path(name) / "runs" / "one"))
        chosen = data.draw(st.lists(st.sampled_from(sorted(places(values), key=str)), min_size=1, max_size=2))
        for place in chosen:
            inner: Any = values
            for key in place[:-1]:
                inner = inner.get(key) if isinstance(inner, dict) else None
            if isinstance(inner, dict):
                inner[place[-1]] = data.draw(ODD, label=".".join(place))
        if isinstance(values.get("output_dir"), str) and not values["output_dir"].startswith(name):
            values["output_dir"] = str(Path(name) / "runs") + "/" + values["output_dir"]
        outcome(values, Path(name))


FIELDS = st.sampled_from(["question", "answer", "text", "messages", "role", "content", "id"])
LINES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=30).map(lambda text: json.dumps({"question": text, "answer": text}).encode()),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["question", "answer", "text", "messages", "role", "id"]), inner, max_size=3
            )
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)


@pytest.mark.slow
@given(
    st.lists(LINES, max_size=4),
    st.sampled_from(["jsonl", "json", "csv", "parquet"]),
    st.sampled_from(["forget", "retain"]),
)
@settings(max_examples=examples(100), deadline=None, suppress_health_check=SLOW, derandomize=True)
@example([b"\xff\xfe"], "jsonl", "forget")
@example([b"question,answer", b'"a,b'], "csv", "forget")
@example([b"PAR1"], "parquet", "retain")
def test_any_bytes_in_a_data_file(things: Path, lines: list[bytes], ending: str, which: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        values = values_of(things, str(Path(name) / "runs" / "one"))
        path = Path(name) / f"data.{ending}"
        path.write_bytes(b"\n".join(lines))
        values["data"][which]["path"] = str(path)
        outcome(values, Path(name))


def test_the_fuzzed_recipe_itself_runs(things: Path, tmp_path: Path) -> None:
    assert outcome(values_of(things, str(tmp_path / "one")), tmp_path) == "done"
    shutil.rmtree(tmp_path / "one")
