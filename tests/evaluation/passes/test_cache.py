"""Test the cache of an evaluation: it gives the same numbers without forward passes, for exact keys only, and holds no text."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_examples import PLANTED, tiny_model, write_jsonl, write_sets, write_task
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import save_file

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource
from llm_forget.evaluation.passes.cache import Cache, model_context, remember
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import GenerationConfig, SetConfig
from llm_forget.evaluation.suite import CapabilityConfig, PerplexityConfig, Suite
from llm_forget.testing import CHATML, tiny_tokenizer
from llm_forget.utils.files import HOST

# Forward passes that try a model once, with a few short rows: how its head is used, and whether it supports tree masks.
TRIALS = 8


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    write_sets(tmp_path)
    return Suite(
        name="tiny",
        sets={name: SetConfig(DataSource(str(tmp_path / f"{name}.jsonl"))) for name in ("forget", "retain")},
        generation=GenerationConfig(max_new_tokens=4, batch_size=2),
        perplexity=PerplexityConfig(str(tmp_path / "neutral.txt"), window=40, stride=20),
        batch_tokens=256,
    )


def measure(
    suite: Suite, folder: Path, model: Any = None, tokenizer: Any = None, **more: Any
) -> tuple[dict[str, Any], int]:
    """Return the results without the times, and the number of forward passes."""
    model = model or tiny_model()
    forwards: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    more = {"cache": folder / "cache", **more}
    try:
        results = run_suite(suite, model, tokenizer or tiny_tokenizer(), **more)
    finally:
        handle.remove()
    return {**results, "seconds": 0}, len(forwards)


def adapted(strength: float) -> Any:
    """Return a model with an adapter that changes its outputs."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(), LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = strength
    return model


def test_cached_results_are_equal_and_need_no_forward(suite: Suite, tmp_path: Path) -> None:
    suite = replace(suite, capability=CapabilityConfig(str(write_task(tmp_path)), limit=4))
    without, plain = measure(suite, tmp_path, cache=None)
    cold, first = measure(suite, tmp_path)
    assert first > TRIALS + 3
    assert plain > TRIALS + 3
    warm, again = measure(suite, tmp_path)
    assert warm == cold == without
    assert again <= TRIALS


@pytest.mark.slow
def test_another_model_data_or_template_is_computed_anew(suite: Suite, tmp_path: Path) -> None:
    suite = replace(suite, perplexity=None)
    base, whole = measure(suite, tmp_path)
    seen = [base]
    same, forwards = measure(suite, tmp_path)
    assert same == base
    assert forwards <= TRIALS < whole

    other = tiny_tokenizer(chat_template=CHATML.replace("\n", " "))
    prompted = replace(suite, encoding=EncodingConfig(system_prompt="Be short."))
    changes: list[tuple[Suite, Any, Any]] = [
        (suite, tiny_model(seed=1), None),
        (suite, adapted(1.0), None),
        (suite, adapted(2.0), None),
        (suite, tiny_model(), other),
        (prompted, None, None),
    ]
    for changed, model, tokenizer in changes:
        result, forwards = measure(changed, tmp_path, model, tokenizer)
        assert forwards > TRIALS
        assert all(result["sets"] != one["sets"] for one in seen), "other numbers than all before"
        assert result == measure(changed, tmp_path, model, tokenizer, cache=None)[0]
        seen.append(result)

    rows = [json.loads(line) for line in (tmp_path / "forget.jsonl").read_text().splitlines()]
    rows[1]["answer"] = "It is another one."
    write_jsonl(tmp_path / "forget.jsonl", rows)
    result, forwards = measure(suite, tmp_path)
    assert forwards > TRIALS
    assert result == measure(suite, tmp_path, cache=None)[0]
    assert result["sets"]["retain"] == base["sets"]["retain"]


def test_generation_settings_are_part_of_the_key(suite: Suite, tmp_path: Path) -> None:
    measure(suite, tmp_path)
    longer = replace(suite, generation=GenerationConfig(max_new_tokens=9, batch_size=2))
    result, forwards = measure(longer, tmp_path)
    assert forwards > TRIALS
    assert result == measure(longer, tmp_path, cache=None)[0]


def test_an_interrupted_evaluation_resumes(suite: Suite, tmp_path: Path) -> None:
    model = tiny_model()
    whole, forwards = measure(suite, tmp_path, cache=None)
    left = TRIALS + 4

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, model, tiny_tokenizer(), cache=tmp_path / "cache")
    handle.remove()
    kept = list((tmp_path / "cache").rglob("*.safetensors"))
    assert kept
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.name.startswith(".")], "nothing half written"
    resumed, rest = measure(suite, tmp_path, model)
    assert resumed == whole
    assert rest <= forwards - len(kept)


def _change(name: str) -> Callable[[Path, dict[str, Any], dict[str, str]], None]:
    """Return a way to damage an entry, given its file, its arrays and its metadata."""

    def arrays(change: Callable[[Any], Any]) -> Callable[[Path, dict[str, Any], dict[str, str]], None]:
        return lambda file, kept, said: save_file({key: change(one) for key, one in kept.items()}, file, metadata=said)

    def folder(file: Path, *_: Any) -> None:
        file.unlink()
        file.mkdir()

    def pipe(file: Path, *_: Any) -> None:
        file.unlink()
        os.mkfifo(file)

    ways: dict[str, Callable[[Path, dict[str, Any], dict[str, str]], None]] = {
        "cut": lambda file, *_: file.write_bytes(file.read_bytes()[:20]),
        "empty": lambda file, *_: file.write_bytes(b""),
        "one bit": arrays(lambda one: (one.view(np.uint8) ^ np.uint8(1)).view(one.dtype)),
        "zero": arrays(np.zeros_like),
        "nan": arrays(lambda one: np.full_like(one, np.nan)),
        "int8": arrays(lambda one: np.nan_to_num(one).astype(np.int8)),
        "longer": arrays(lambda one: np.concatenate([one, one], axis=-1)),
        "another shape": arrays(np.ravel),
        "other names": lambda file, kept, said: save_file({f"{key}s": one for key, one in kept.items()}, file, said),
        "no arrays": lambda file, kept, said: save_file({}, file, said),
        "no digest": lambda file, kept, said: save_file(kept, file),
        "folder in the way": folder,
        "pipe in the way": pipe,
    }
    return ways[name]


DAMAGE = (
    "cut", "empty", "one bit", "zero", "nan", "int8", "longer", "another shape", "other names", "no arrays", "no digest",
    "folder in the way", "pipe in the way",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_computed_again(damage: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path, {})
    right = {"scores": np.array([[0.25, 0.5], [1.0, 2.0]], dtype=np.float32)}
    path = cache.path("scores", [1])
    cache.save(path, right)
    np.testing.assert_array_equal((cache.load(path) or {})["scores"], right["scores"])
    with safe_open(path, framework="np") as opened:
        said = opened.metadata()
    _change(damage)(path, right, said)
    assert cache.load(path) is None
    found = remember(cache, None, "scores", [1], lambda: right)
    np.testing.assert_array_equal(found["scores"], right["scores"])
    if "in the way" in damage:
        return
    np.testing.assert_array_equal((cache.load(path) or {})["scores"], right["scores"])


def test_an_entry_under_another_name_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, {})
    one, other = cache.path("scores", [1]), cache.path("scores", [2])
    cache.save(one, {"scores": np.ones(3)})
    other.parent.mkdir(parents=True)
    shutil.copy(one, other)
    assert cache.load(other) is None


def test_damaged_entries_change_no_number(suite: Suite, tmp_path: Path) -> None:
    cold, _ = measure(suite, tmp_path)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    for index, file in enumerate(files):
        file.write_bytes(contents[index - 1] if index % 2 else contents[index][:-1] + b"x")
    warm, forwards = measure(suite, tmp_path)
    assert warm == cold
    assert forwards > TRIALS
    assert measure(suite, tmp_path)[1] <= TRIALS, "the entries are whole again"


def test_a_cache_that_cannot_be_written_is_a_note(suite: Suite, tmp_path: Path) -> None:
    plain, _ = measure(suite, tmp_path, cache=None)
    (tmp_path / "cache").write_text("a file in the way")
    stream = io.StringIO()
    found, _ = measure(suite, tmp_path, console=Console(file=stream, width=200))
    (warning,) = found["warnings"]
    assert "cache cannot be written" in warning.replace(str(tmp_path / "cache"), "cache").replace("in cache ", "")
    assert {**found, "warnings": []} == plain
    assert stream.getvalue().count("note the cache in") == 1


def test_a_killed_evaluation_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache = Cache(tmp_path, {})
    cache.save(cache.path("scores", [1]), {"scores": np.ones(3)})
    gone = tmp_path / f".x.safetensors.{HOST}-{2**22 + 1}-00000000.new"
    gone.write_bytes(b"half")
    Cache(tmp_path, {})
    assert not gone.exists()


def test_no_text_is_cached_without_keep_text(suite: Suite, tmp_path: Path) -> None:
    measure(suite, tmp_path)
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    assert files
    assert not any(b"text_utf8" in file.read_bytes() for file in files)
    kept, forwards = measure(suite, tmp_path, keep_text=True)
    assert forwards > TRIALS, "texts were not in the cache"
    assert any(b"text_utf8" in file.read_bytes() for file in (tmp_path / "cache").rglob("*.safetensors"))
    again, forwards = measure(suite, tmp_path, keep_text=True)
    assert forwards <= TRIALS
    assert again == kept
    texts = [scores["generated"] for scores in again["sets"]["forget"]["examples"].values()]
    assert texts == [
        scores["generated"]
        for scores in measure(suite, tmp_path, keep_text=True, cache=None)[0]["sets"]["forget"]["examples"].values()
    ]
    assert PLANTED not in "".join(str(file) for file in files)


def test_disabled_cache_writes_nothing(suite: Suite, tmp_path: Path) -> None:
    measure(suite, tmp_path, cache=None)
    assert not (tmp_path / "cache").exists()


def test_the_key_depends_on_strengths_and_not_on_model_names(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    first, second = tiny_model(), tiny_model()
    second.config._name_or_path = "somewhere/else"
    assert model_context(first, tokenizer) == model_context(second, tokenizer)
    contexts = [
        model_context(one, tokenizer) for one in (adapted(1.0), adapted(2.0), adapted(2.0).half(), tiny_model())
    ]
    off = adapted(1.0)
    off.disable_adapter_layers()
    contexts.append(model_context(off, tokenizer))
    digests = {Cache(tmp_path, one or {}).context for one in contexts}
    assert len(digests) == len(contexts)
    with torch.device("meta"):
        assert model_context(tiny_model(), tokenizer) is None, "a model of which nothing is here"
