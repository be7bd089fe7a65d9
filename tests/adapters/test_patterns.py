"""Test that patterns of adapter configs are matched as PEFT does, and never for longer than a few seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_examples import save_tiny_llama, trained_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from llm_forget.adapters import patterns
from llm_forget.adapters.doctor import diagnose
from llm_forget.adapters.lora import load_adapter
from llm_forget.adapters.lora_config import untargeted
from llm_forget.config import AdapterConfig
from llm_forget.errors import AdapterError, UserError
from llm_forget.model.blocks import add_adapter

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.experts.3.up_proj",
    "transformer.h.2.attn.c_attn",
    "h.0.mlp.c_fc",
    "lm_head",
]
SLOW = ["([a-z_.0-9]+)+!", "([a-z]|[a-z._0-9]+)*!", "(.*)*x", ".*.*.*.*.*.*.*.*.*.*.*.*!", "(x?[^!]*)*!"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("targets", "more"),
    [
        (["q_proj"], {}),
        (["q_proj", "lm_head", "c_attn"], {"exclude_modules": ["layers.1.self_attn.q_proj"]}),
        (["q_proj", "up_proj"], {"layers_to_transform": [1]}),
        (["q_proj", "c_fc", "c_attn"], {"layers_to_transform": 0, "layers_pattern": ["h", "layers"]}),
        (["up_proj"], {"layers_to_transform": [3], "layers_pattern": "experts"}),
        (["c_fc"], {"layers_to_transform": [0]}),
        (["self_attn.q_proj"], {"exclude_modules": r".*\.0\..*"}),
        (r".*\.layers\.\d+\..*(q|up)_proj", {}),
        (r"(?i)MODEL\..*Q_PROJ|lm_head", {}),
        ("", {}),
        ([], {}),
    ],
)
def test_the_layers_that_peft_adapts(targets: Any, more: dict[str, Any]) -> None:
    config = {"target_modules": targets, "exclude_modules": None, **more}
    asked = SimpleNamespace(
        **{"target_parameters": None, "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None}
        | config
    )
    adapted = [name for name in NAMES if _adapts(asked, name)]
    assert [name for name in NAMES if name not in untargeted(config, NAMES)] == adapted


def _adapts(config: Any, name: str) -> bool:
    found = check_target_module_exists(config, name)
    return bool(found) and type(found).__name__ != "_ExcludedModule"


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab.*+?|(){}2\\d", max_size=8), max_size=3), st.lists(st.text("ab.2", max_size=6), max_size=4))
def test_here_and_apart_give_the_same(keys: list[str], names: list[str]) -> None:
    full = [f"(.*\\.)?({key})$" for key in keys]
    try:
        here: Any = patterns._match_here(keys, full, names, "end", "key")
    except AdapterError as error:
        here = str(error)
    try:
        apart: Any = patterns._match_apart(keys, full, names, "end", "key")
    except AdapterError as error:
        apart = str(error)
    assert here == apart


@pytest.mark.slow
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_patterns_that_backtrack_for_ever(base: Path, tmp_path: Path, key: str) -> None:
    value = {SLOW[0]: 4} if key.endswith("pattern") else SLOW[0]
    folder = edited(trained_adapter(base, tmp_path / "a"), **{key: value})
    start = time.monotonic()
    with pytest.raises(AdapterError, match=f"{key}.*takes more than 1 seconds to match.*name the layers in a list"):
        load_adapter(folder)
    assert not diagnose(base, folder).ok
    assert time.monotonic() - start < 15


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    patterns._matches.cache_clear()


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_is_matched_here_that_takes_long(pattern: str) -> None:
    start = time.monotonic()
    with pytest.raises(AdapterError, match="to match"):
        patterns.matches([pattern], ["model.layers.10.self_attn.a_projection_with_a_long_name" * 3], "full", "key")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_recipe_with_such_a_pattern_is_refused(base: Path, share: float) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(UserError, match=r"adapter\.target_modules.*takes more than 1 seconds"):
        add_adapter(model, AdapterConfig(target_modules=SLOW[0], top_share=share))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": 5}, "target_modules is 5; give a list of module names"),
        ({"target_modules": [1]}, r"target_modules is \[1\]; give a list"),
        ({"target_modules": {"a": 1}}, "give a list of module names"),
        ({"exclude_modules": 5}, "exclude_modules is 5"),
        ({"exclude_modules": ["q_proj"]}, "does not reach .*q_proj.*exclude_modules"),
        ({"layers_to_transform": [1]}, r"does not reach model\.layers\.0.*layers_to_transform"),
        ({"layers_to_transform": "x"}, "layers_to_transform is 'x'"),
        ({"layers_pattern": 5, "layers_to_transform": [1]}, "layers_pattern 5"),
        ({"rank_pattern": 5}, "rank_pattern is 5"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"lora_alpha": 10**300}, "lora_alpha 1000.*give a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha 1000.*give a finite number"),
        ({"lora_alpha": "8"}, "lora_alpha '8'"),
        ({"r": 10**30}, "rank 1000"),
        ({"base_model_name_or_path": {"a": 1}}, "base_model_name_or_path is not a text"),
        ({"task_type": 5}, "task_type is not a text"),
    ],
)
def test_wrong_values_end_in_a_message(base: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = edited(trained_adapter(base, tmp_path / "a"), **changes)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder)
    if "not a text" not in message:  # the doctor needs these to begin
        assert not diagnose(base, folder).ok


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[1]", "nope", '{"a": ' * 100_000])
def test_configs_that_are_no_mapping(base: Path, tmp_path: Path, content: str) -> None:
    folder = trained_adapter(base, tmp_path / "a")
    (folder / "adapter_config.json").write_text(content)
    for read in (load_adapter, lambda one: diagnose(base, one)):
        with pytest.raises(AdapterError, match=r"is not JSON|not a mapping"):
            read(folder)


@pytest.mark.parametrize("side", ["A", "B"])
def test_factors_that_are_no_matrices(base: Path, tmp_path: Path, side: str) -> None:
    folder = trained_adapter(base, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(one for one in tensors if f"lora_{side}" in one)
    good = tensors[name]
    for bad in (
        torch.tensor(1.0),
        torch.ones(3),
        torch.ones(0, 0),
        good[:0] if side == "A" else good[:, :0],
        good.to(torch.int8),
        good.to(torch.float8_e4m3fn),
        torch.full_like(good, float("nan")),
    ):
        save_file({**tensors, name: bad.contiguous()}, path)
        with pytest.raises(AdapterError):
            load_adapter(folder)
        assert not diagnose(base, folder).ok
