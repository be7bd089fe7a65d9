"""Test that adapters are read as PEFT applies them, that they survive a round trip, and that all other files are refused."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BASE, TOKENS, adapters, random_adapter, save_tiny_llama, trained_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llm_forget.adapters.arithmetic import delta
from llm_forget.adapters.lora import (
    BaseRecord,
    Factors,
    load_adapter,
    new_folder,
    read_base_record,
    save_adapter,
)
from llm_forget.adapters.lora_config import matching_key, rank_and_scaling
from llm_forget.errors import AdapterError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_adapter(random_adapter(), tmp_path / "adapter")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@settings(max_examples=25, deadline=None)
@given(adapter=adapters())
def test_write_and_read_round_trip_is_bit_for_bit(tmp_path_factory, adapter):
    folder = save_adapter(adapter, tmp_path_factory.mktemp("x") / "adapter")
    again = load_adapter(folder)
    assert again.base == adapter.base
    assert again.config == adapter.config
    assert again.modules.keys() == adapter.modules.keys()
    for module, factors in adapter.modules.items():
        assert again.modules[module].scaling == factors.scaling
        for side in ("A", "B"):
            ours, theirs = getattr(again.modules[module], side), getattr(factors, side)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


PATTERN_CASES: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "r": 9},
    {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"down_proj": 3}},
    {"rank_pattern": {"1.mlp.down_proj": 2, "down_proj": 5}, "use_rslora": True},
    {"rank_pattern": {"down_proj": 5, "layers.1.mlp.down_proj": 2}},
    {"rank_pattern": {r"^model\.layers\.0\..*": 3}, "alpha_pattern": {r"layers\.\d\.self_attn\.(q|k)_proj": 1}},
    {"rank_pattern": {"proj": 3}, "alpha_pattern": {"_proj": 3}},
    {"target_modules": "all-linear", "r": 2},
    {"target_modules": r".*\.1\..*(q|up)_proj"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0]},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "mica"},
    {"init_lora_weights": False, "lora_dropout": 0.1},
]


@pytest.mark.parametrize("settings_", PATTERN_CASES, ids=str)
def test_delta_equals_the_change_that_peft_applies(base, tmp_path, settings_):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    adapter = load_adapter(trained_adapter(base, tmp_path / "a", **settings_))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "a")
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert adapter.modules.keys() == layers.keys()
    for name, layer in layers.items():
        assert adapter.modules[name].scaling == layer.scaling["default"]
        assert torch.equal(delta(adapter, name), layer.get_delta_weight("default"))
        assert delta(adapter, name).abs().max() > 0
    assert model(TOKENS).logits.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(
    keys=st.lists(st.sampled_from(["a", "b", "a.b", r"a\.b", "^x.a", ".*", "x.a.b", "(a|b)", "ab", "x"]), max_size=4),
    name=st.sampled_from(["a", "x.a", "x.a.b", "b", "xa", "x.ab", "a.b.x"]),
)
def test_patterns_match_as_in_peft(keys, name):
    from peft.utils.other import get_pattern_key

    assert matching_key(keys, name) == get_pattern_key(keys, name)


def test_a_saved_adapter_is_loaded_by_peft_without_a_missing_or_dropped_tensor(base, tmp_path, recwarn):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = load_adapter(trained_adapter(base, tmp_path / "a", rank_pattern={"q_proj": 2}))
    save_adapter(adapter, tmp_path / "b")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "b")
    assert not [w for w in recwarn if "missing" in str(w.message) or "unexpected" in str(w.message)]
    state = model.state_dict()
    for name, factors in adapter.modules.items():
        assert torch.equal(state[f"base_model.model.{name}.lora_B.default.weight"], factors.B)


def test_patterns_keep_their_order_on_disk(tmp_path):
    adapter = random_adapter(alphas=(2, 4))
    overlapping = {
        r"1.*q_proj": 4,
        r".*1.*": 2,
        r".*q_proj": 4,
        r".*": 2,
    }  # the first matching pattern wins; '.' sorts first
    scalings = {
        m: Factors(f.A, f.B, (4 if "1.self" in m or "q_proj" in m else 2) / 4) for m, f in adapter.modules.items()
    }
    ordered = replace(adapter, config={**adapter.config, "alpha_pattern": overlapping}, modules=scalings)
    again = load_adapter(save_adapter(ordered, tmp_path / "a"))
    assert {m: f.scaling for m, f in again.modules.items()} == {m: f.scaling for m, f in scalings.items()}


def test_patterns_whose_order_peft_changed_are_refused(base, tmp_path):
    with pytest.raises(AdapterError, match=r"says rank 5; .*PEFT sorts"):
        load_adapter(trained_adapter(base, tmp_path / "a", rank_pattern={"layers.1.mlp.down_proj": 2, "down_proj": 5}))


def test_only_the_expected_files_are_written_and_others_can_read_them(tmp_path):
    before = os.umask(0o022)
    try:
        folder = save_adapter(random_adapter(), tmp_path / "deep" / "adapter", card="# A card\n")
    finally:
        os.umask(before)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o644}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def test_a_failed_write_keeps_the_previous_files_only(tmp_path, saved):
    before = (saved / "adapter_config.json").read_bytes()

    def fails_half_way() -> None:
        with new_folder(saved, overwrite=True) as new:
            (new / "half").write_text("x")
            raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        fails_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (saved / "adapter_config.json").read_bytes() == before


def test_an_existing_folder_is_refused_unless_overwrite_is_set(tmp_path, saved):
    with pytest.raises(AdapterError, match="overwrite=True"):
        save_adapter(random_adapter(seed=2), saved)
    other = random_adapter(seed=2)
    save_adapter(other, saved, overwrite=True)
    name = "model.layers.0.mlp.down_proj"
    assert torch.equal(load_adapter(saved).modules[name].A, other.modules[name].A)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(AdapterError, match="has no adapter or model"):
        save_adapter(other, tmp_path / "photos", overwrite=True)
    (tmp_path / "empty").mkdir()
    save_adapter(other, tmp_path / "empty")


def test_a_config_that_contradicts_its_factors_is_not_written(tmp_path):
    adapter = random_adapter()
    with pytest.raises(AdapterError, match="change both together"):
        save_adapter(replace(adapter, config={**adapter.config, "use_rslora": True}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_base_record_comes_from_config_weights_and_card(tmp_path, saved):
    assert read_base_record(saved) == BASE
    adapter = replace(random_adapter(), base=BaseRecord(name="org/tiny"))
    front = "---\nlibrary_name: peft\nbase_model_digest: " + "2" * 64 + "\n---\ntext\n"
    with_card = save_adapter(adapter, tmp_path / "card", card=front)
    assert load_adapter(with_card).base == BaseRecord("org/tiny", None, "2" * 64)
    for broken in ("no front matter", "---\n[: bad\n---\n", "---\njust text\n---\n", "---\nunclosed: 1\n"):
        (with_card / "README.md").write_text(broken)
        assert load_adapter(with_card).base == BaseRecord("org/tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA'.*train a LoRA adapter"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, r"use_dora=True.*magnitude.*train again without"),
        ({"modules_to_save": ["lm_head"]}, "whole modules were trained"),
        ({"trainable_token_indices": [1, 2]}, "single token embeddings"),
        ({"lora_bias": True}, "B has a bias"),
        ({"bias": "lora_only"}, r"bias='lora_only'.*train again with bias='none'"),
        ({"target_parameters": ["experts.up"]}, "expert by expert"),
        ({"alora_invocation_tokens": [3]}, "invocation tokens"),
        ({"use_qalora": True}, "pools the input"),
        ({"use_bdlora": {"nblocks": 2}}, "block by block"),
        ({"arrow_config": {"top_k": 2}}, "token by token"),
        ({"kasa_config": {"x": 1}}, "KaSA"),
        ({"monteclora_config": {"x": 1}}, "sampled anew"),
        ({"layer_replication": [[0, 1]]}, "layers are repeated"),
        ({"megatron_config": {"x": 1}}, "Megatron"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base weights.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "train again with init_lora_weights=True"),
        ({"init_lora_weights": "OLoRA"}, "train again with init_lora_weights=True"),
        ({"init_lora_weights": "corda"}, "train again with init_lora_weights=True"),
        ({"init_lora_weights": "lora_ga"}, "train again with init_lora_weights=True"),
        ({"init_lora_weights": "loftq"}, "'loftq' changes the base.*init_lora_weights=True"),
        ({"init_lora_weights": "of_next_year"}, "changes the base weights"),
        ({"twist": 3}, r"twist=3 is not known here"),
        ({"r": 0, "rank_pattern": {}}, "rank 0"),
        ({"rank_pattern": {"q_proj": True}, "r": 4}, "rank True"),
        ({"r": "4", "rank_pattern": {}}, "rank '4'"),
        ({"rank_pattern": {}, "r": 5}, "says rank 5"),
        ({"lora_alpha": "16", "alpha_pattern": {}}, "lora_alpha '16'"),
        ({"lora_alpha": float("nan"), "alpha_pattern": {}}, "lora_alpha nan"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"rank_pattern": [4]}, "a mapping from module names"),
        ({"target_modules": ["q_proj"]}, r"does not reach model\.layers\.0\.mlp\.down_proj \(one of 2\)"),
        ({"target_modules": r".*q_proj"}, "does not reach"),
    ],
    ids=str,
)
def test_configs_that_are_not_plain_lora_are_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(AdapterError, match=f"(?s){message}"):
        load_adapter(saved)


def test_all_problems_are_reported_at_once(saved):
    edit_config(saved, use_dora=True, lora_bias=True, bias="all")
    with pytest.raises(AdapterError) as error:
        load_adapter(saved)
    assert all(word in str(error.value) for word in ("use_dora", "lora_bias", "bias='all'"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{Q0}.lora_magnitude_vector": torch.ones(24)}, "DoRA's magnitudes"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 8)}, "LoRA on an embedding"),
        ({f"{Q0}.lora_B.bias": torch.ones(24)}, "a bias on B"),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(8, 4)}, "save_embedding_layers=False"),
        ({"base_model.model.lm_head.base_layer.weight": torch.ones(8, 4)}, "save_embedding_layers=False"),
        ({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1)}, "trained token"),
        ({f"{Q0}.lora_diag": torch.ones(4)}, "not an A or B"),
        ({"anything": torch.ones(1)}, "not an A or B"),
        ({f"{Q0}.lora_A.weight": None}, "has B but not the other factor"),
        ({f"{Q0}.lora_B.weight": None}, "has A but not the other factor"),
        ({f"{Q0}.lora_A.weight": torch.ones(5, 20)}, r"\(r, in\) and \(out, r\)"),
        ({f"{Q0}.lora_A.weight": torch.ones(4, 5, 1, 1)}, "Convolutions"),
        ({f"{Q0}.lora_A.weight": torch.ones(0)}, "sharded model"),
        ({f"{Q0}.lora_A.weight": torch.ones(4, 20, dtype=torch.int8)}, "torch.int8"),
        ({f"{Q0}.lora_A.weight": torch.full((4, 20), float("nan"))}, "NaN or infinity in A"),
        ({f"{Q0}.lora_B.weight": torch.full((24, 4), float("inf"))}, "NaN or infinity in B"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_tensors_that_are_not_plain_lora_are_refused(saved, changes, message):
    edit_tensors(saved, **changes)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved)


def test_damaged_and_missing_files_are_refused(tmp_path, saved):
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], whole[:40], b"", b"not safetensors at all", whole + b"tail"):
        weights.write_bytes(damaged)
        with pytest.raises(AdapterError, match="is damaged"):
            load_adapter(saved)
    save_file({}, weights)
    with pytest.raises(AdapterError, match="no LoRA factors"):
        load_adapter(saved)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        load_adapter(saved)
    (saved / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(AdapterError, match=r"a pickle.*save_pretrained"):
        load_adapter(saved)
    config.write_text("{")
    with pytest.raises(AdapterError, match="not JSON"):
        load_adapter(saved)
    config.write_text("[1]")
    with pytest.raises(AdapterError, match="contains a list"):
        load_adapter(saved)
    config.unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        load_adapter(saved)
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        load_adapter(tmp_path / "nowhere")
    save_adapter(random_adapter(), tmp_path / "run" / "adapter")
    with pytest.raises(AdapterError, match="It has adapters in adapter"):
        load_adapter(tmp_path / "run")


@pytest.mark.parametrize("rslora", [False, True])
def test_scaling_by_hand(rslora):
    config = {"r": 16, "lora_alpha": 8, "use_rslora": rslora, "rank_pattern": {"a": 4}, "alpha_pattern": {"b": 2}}
    assert rank_and_scaling(config, "x.c") == (16, 2.0 if rslora else 0.5)
    assert rank_and_scaling(config, "x.a") == (4, 4.0 if rslora else 2.0)
    assert rank_and_scaling(config, "x.b") == (16, 0.5 if rslora else 0.125)
