"""Test that an adapter whose names are not the base's is refused at every door, and that export removes known wrappers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from adapter_examples import largest, logits, save_tiny_llama, trained_adapter
from safetensors.torch import load_file, save_file

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.base_layers import base_layers
from llm_forget.adapters.compose import compose
from llm_forget.adapters.doctor import diagnose
from llm_forget.adapters.export import export_adapter, save_without_base
from llm_forget.adapters.lora import BaseRecord, load_adapter, save_adapter
from llm_forget.adapters.merge import merge
from llm_forget.config import ModelConfig
from llm_forget.errors import AdapterError, UserError
from llm_forget.model.adapted import attach_adapter
from llm_forget.model.load import check_adapter_fits, load_model
from llm_forget.utils.digests import weights_digest

DEAD = ["_orig_mod.", "module.", "language_model.", "base.", "h.", "model."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


def renamed(base: Path, folder: Path, prefix: str, only: str = "") -> Path:
    """A sound adapter, and the same with a prefix before its layer names."""
    trained = trained_adapter(base, folder)
    path = trained / "adapter_model.safetensors"
    own = "base_model.model."
    save_file(
        {name.replace(own, own + prefix) if only in name else name: value for name, value in load_file(path).items()},
        path,
    )
    return trained


def statuses(base: Path, adapter: Path) -> set[str]:
    return {verdict.status for verdict in diagnose(base, adapter).verdicts} - {"merged only"}


@pytest.mark.parametrize("prefix", DEAD)
def test_names_that_peft_would_drop_pass_no_door(base: Path, tmp_path: Path, prefix: str) -> None:
    dead = renamed(base, tmp_path / "dead", prefix)
    assert largest(logits(base, dead) - logits(base)) == 0  # what PEFT makes of it
    diagnosis = diagnose(base, dead)
    assert not diagnosis.ok
    assert statuses(base, dead) <= {"wrong", "refuses"}
    assert f"the base has no layer {prefix}model.layers.0" in diagnosis.report()
    adapter = load_adapter(dead)
    with pytest.raises(AdapterError, match=f"no weight {prefix}model"):
        merge(base, dead, tmp_path / "merged")
    with pytest.raises(UserError, match=f"it changes {prefix}model.*has no such layer"):
        check_adapter_fits(str(base), str(dead))
    local = replace(adapter, base=BaseRecord(str(base)))
    with pytest.raises(AdapterError, match=r"no such layer|of a wrapper"):
        compose([local, scale(local, 2.0)])
    model = load_model_only(base)
    with pytest.raises(AdapterError, match="no such layer"):
        attach_adapter(model, adapter)


def load_model_only(base: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "language_model.", "module._orig_mod."])
def test_export_removes_known_wrappers(
    base: Path, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(base, trained_adapter(base, tmp_path / "sound"))
    dead = renamed(base, tmp_path / "dead", prefix)
    record = BaseRecord("org/tiny", None, weights_digest(base))
    exported = export_adapter(dead, tmp_path / "exported", base=record, base_folder=base)
    assert f"{prefix!r} of a wrapper is removed" in caplog.text
    assert largest(logits(base, exported.folder) - wanted) < 1e-5
    assert diagnose(base, exported.folder).ok


def test_wrappers_inside_a_name_are_removed_too(base: Path, tmp_path: Path) -> None:
    """As torch.compile of single blocks, FSDP and activation checkpointing leave them."""
    trained = trained_adapter(base, tmp_path / "a")
    wanted = logits(base, trained)
    path = trained / "adapter_model.safetensors"
    for wrapper in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        inside = {name.replace(".self_attn", f".{wrapper}.self_attn"): value for name, value in load_file(path).items()}
        dead = trained_adapter(base, tmp_path / wrapper)
        save_file(inside, dead / "adapter_model.safetensors")
        record = BaseRecord("org/tiny", None, weights_digest(base))
        exported = export_adapter(dead, tmp_path / f"exported{wrapper}", base=record, base_folder=base)
        assert largest(logits(base, exported.folder) - wanted) < 1e-5


def test_unknown_wrappers_and_partial_matches_are_not_exported(base: Path, tmp_path: Path) -> None:
    record = BaseRecord("org/tiny", None, weights_digest(base))
    with pytest.raises(AdapterError, match=r"changes base\.model\.layers\.0.*none of its 6 layers are in the base"):
        export_adapter(renamed(base, tmp_path / "a", "base."), tmp_path / "x", base=record, base_folder=base)
    half = renamed(base, tmp_path / "b", "base.", only="v_proj")
    with pytest.raises(AdapterError, match="4 of its 6 layers are in the base"):
        export_adapter(half, tmp_path / "x", base=record, base_folder=base)
    assert "4 of its 6 layers are in the base" in diagnose(base, half).report()
    wrapped = load_adapter(renamed(base, tmp_path / "c", "_orig_mod."))
    for write in (
        lambda to: export_adapter(wrapped, to, base=record),
        lambda to: save_without_base(wrapped, to, max_rank=4),
    ):
        with pytest.raises(AdapterError, match=r"'_orig_mod\.' of a wrapper"):
            write(tmp_path / "x")


def test_a_headless_base_fits_the_adapter_of_the_whole_model(base: Path, tmp_path: Path) -> None:
    """Names in the files without the model's own prefix, which loading adds. The prefix counts, not any first component."""
    load_model_only(base).model.save_pretrained(tmp_path / "headless")
    trained = trained_adapter(base, tmp_path / "a")
    assert base_layers(tmp_path / "headless").misfit(load_adapter(trained)) is None
    dead = renamed(base, tmp_path / "dead", "other.")
    assert base_layers(tmp_path / "headless").misfit(load_adapter(dead)) is not None
    merged = merge(tmp_path / "headless", trained, tmp_path / "merged")
    whole = load_file(merge(base, trained, tmp_path / "whole") / "model.safetensors")
    bare = load_file(merged / "model.safetensors")
    assert all(torch.equal(value, whole[f"model.{name}"]) for name, value in bare.items())


def test_files_with_other_names_than_the_model(tmp_path: Path) -> None:
    """A multimodal wrapper stores its language model under another name than the modules that PEFT adapts."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings = transformers.Gemma3Config(
        text_config={**small, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
        vision_config={**small, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "base")
    trained = trained_adapter(tmp_path / "base", tmp_path / "a", target_modules=r".*language_model.*(q_proj|down_proj)")
    names = {layer.stored for layer in base_layers(tmp_path / "base").layers.values()}
    assert not {f"{module}.weight" for module in load_adapter(trained).modules} <= names
    assert diagnose(tmp_path / "base", trained, prompts=[[1, 2, 3]]).ok
    merged = merge(tmp_path / "base", trained, tmp_path / "merged")
    assert largest(logits(merged) - logits(tmp_path / "base", trained)) < 1e-5


def test_an_adapter_without_effect_is_told(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    adapter = load_adapter(trained_adapter(base, tmp_path / "a"))
    zero = {name: replace(factors, B=torch.zeros_like(factors.B)) for name, factors in adapter.modules.items()}
    folder = save_adapter(replace(adapter, modules=zero), tmp_path / "zero")
    assert any("changes nothing" in note for note in diagnose(base, folder).notes)
    merge(base, folder, tmp_path / "merged")
    assert "the adapter changes nothing" in caplog.text
    caplog.clear()
    load_adapter_into_model(base, folder)
    assert "the adapter changes nothing" in caplog.text
    caplog.clear()
    merge(base, tmp_path / "a", tmp_path / "fine")
    assert not caplog.text
    faint = scale(adapter, 1e-12)
    merge(base, replace(faint, modules=dict(faint.modules)), tmp_path / "faint", "bfloat16")
    assert "the adapter changes nothing" in caplog.text


def load_adapter_into_model(base: Path, folder: Path) -> None:
    from llm_forget.testing import tiny_tokenizer

    tiny_tokenizer().save_pretrained(base)
    load_model(ModelConfig(str(base), adapter=str(folder), dtype="float32"))


def test_a_merged_load_gives_the_logits_of_peft(base: Path, tmp_path: Path) -> None:
    from llm_forget.testing import tiny_tokenizer

    tiny_tokenizer().save_pretrained(base)
    trained = trained_adapter(base, tmp_path / "a", use_rslora=True)
    model, _ = load_model(ModelConfig(str(base), adapter=str(trained), dtype="float32"))
    from adapter_examples import TOKENS

    with torch.no_grad():
        assert largest(model(TOKENS).logits - logits(base, trained)) < 1e-5
    attached = attach_adapter(load_model_only(base), load_adapter(trained)).eval()
    with torch.no_grad():
        assert largest(attached(TOKENS).logits - logits(base, trained)) < 1e-5
