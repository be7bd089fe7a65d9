"""Test which adapters the doctor reports as loaded, refused, or loaded with a different meaning."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import save_tiny_llama, trained_adapter
from safetensors.torch import load_file, save_file

from llm_forget.adapters.doctor import Diagnosis, Verdict, diagnose
from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, load_adapter, save_adapter
from llm_forget.adapters.merge import merge
from llm_forget.adapters.parity import Parity
from llm_forget.errors import AdapterError, UserError
from llm_forget.utils.digests import weights_digest

PROMPTS = [[1, 5, 9, 33], [4, 4, 8, 15, 16, 23, 42]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def record(base: Path) -> BaseRecord:
    return BaseRecord("org/tiny", None, weights_digest(base))


def statuses(diagnosis: Diagnosis) -> dict[str, str]:
    return {verdict.server: verdict.status for verdict in diagnosis.verdicts}


def reasons(diagnosis: Diagnosis, server: str) -> str:
    return " / ".join(next(v.reasons for v in diagnosis.verdicts if v.server == server))


def all_servers(status: str, **others: str) -> dict[str, str]:
    names = {"vllm": "vLLM", "sglang": "SGLang", "llama_cpp": "llama.cpp", "peft": "PEFT"}
    return {
        **dict.fromkeys(names.values(), status),
        "Ollama": "merged only",
        **{names[key]: value for key, value in others.items()},
    }


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("config", [{}, {"r": 9, "use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}], ids=str)
def test_exported_adapters_are_healthy(base, record, tmp_path, config):
    trained = trained_adapter(base, tmp_path / "trained", **config)
    exported = export_adapter(trained, tmp_path / "exported", base=record)
    diagnosis = diagnose(base, exported.folder, prompts=PROMPTS)
    assert statuses(diagnosis) == all_servers("loads")
    assert diagnosis.base == "same"
    assert diagnosis.notes == ()
    assert diagnosis.ok
    assert diagnosis.parity is not None
    assert diagnosis.parity.exported <= diagnosis.parity.allowed
    assert diagnosis.parity.merged <= diagnosis.parity.allowed
    assert diagnosis.parity.effect > 1e-2 > diagnosis.parity.allowed
    text = diagnosis.report()
    assert "base: same" in text
    assert "vLLM: loads" in text
    assert "Ollama: merged only" in text
    assert "logits: exported differs by" in text


def test_rslora_and_patterns_are_silently_served_at_another_strength(base, tmp_path):
    """Only PEFT and recent versions of vLLM apply them correctly."""
    rslora = diagnose(base, trained_adapter(base, tmp_path / "rs", r=16, use_rslora=True))
    assert statuses(rslora) == all_servers("wrong", vllm="loads", peft="loads")
    assert "at 0.25 times the trained one" in reasons(rslora, "SGLang")
    assert "at 0.25 times" in reasons(rslora, "llama.cpp")
    assert not rslora.ok
    alphas = diagnose(base, trained_adapter(base, tmp_path / "alpha", alpha_pattern={"q_proj": 2}))
    assert statuses(alphas) == all_servers("wrong", vllm="loads", peft="loads")
    assert "2 of 6 modules" in reasons(alphas, "SGLang")
    assert "at 4 times" in reasons(alphas, "SGLang")
    assert any("vLLM 0.32.0 honours both, and earlier versions may not" in note for note in alphas.notes)
    ranks = diagnose(base, trained_adapter(base, tmp_path / "rank", rank_pattern={"q_proj": 2}))
    assert statuses(ranks) == all_servers("loads", sglang="wrong")
    both = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}
    assert statuses(diagnose(base, trained_adapter(base, tmp_path / "both", **both))) == all_servers(
        "loads", llama_cpp="wrong"
    )
    zero = diagnose(base, trained_adapter(base, tmp_path / "zero", lora_alpha=0))
    assert statuses(zero) == all_servers("loads", llama_cpp="wrong")


def test_the_rank_limit_of_vllm(base, tmp_path):
    trained = trained_adapter(base, tmp_path / "r20", r=20)
    limited = diagnose(base, trained)
    assert statuses(limited) == all_servers("loads", vllm="refuses")
    assert "rank 20 is above its limit of 16: start it with --max-lora-rank 32" in reasons(limited, "vLLM")
    assert statuses(diagnose(base, trained, max_rank=32)) == all_servers("loads")
    hidden = {"rank_pattern": {"q_proj": 20}, "alpha_pattern": {"q_proj": 40}}
    assert statuses(diagnose(base, trained_adapter(base, tmp_path / "hidden", **hidden)))["vLLM"] == "refuses"
    huge = diagnose(base, trained_adapter(base, tmp_path / "huge", r=600, target_modules=["q_proj"]))
    assert "it accepts 512 at most" in reasons(huge, "vLLM")


@pytest.mark.parametrize(
    ("config", "expected", "word"),
    [
        ({"use_dora": True}, all_servers("refuses", peft="loads"), "DoRA"),
        ({"lora_bias": True}, all_servers("refuses", peft="loads"), "bias"),
        ({"bias": "all"}, all_servers("refuses", peft="loads"), "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, all_servers("refuses", peft="loads"), "modules_to_save"),
        ({"peft_type": "LOHA"}, all_servers("refuses", vllm="wrong"), "it ignores this: its peft_type is 'LOHA'"),
        ({"twist": 1}, all_servers("refuses", vllm="wrong"), "it ignores this: twist=1"),
        ({"kasa_config": {"k": 1}}, all_servers("refuses", vllm="wrong", peft="loads"), "KaSA"),
        (
            {"init_lora_weights": "pissa"},
            all_servers("wrong", vllm="refuses", peft="loads"),
            "changes the base weights",
        ),
        ({"init_lora_weights": "loftq"}, all_servers("wrong", vllm="refuses"), "changes the base weights"),
        ({"init_lora_weights": "lora_ga"}, all_servers("wrong", peft="loads"), "it ignores this: init_lora_weights"),
        ({"r": 5}, all_servers("refuses", vllm="wrong"), "the config says 5; it may load and answer nevertheless"),
        ({"r": "x"}, all_servers("refuses"), "rank 'x'"),
        ({"target_modules": "("}, all_servers("loads", peft="refuses"), "not a regular expression"),
        ({"target_modules": ["q_proj"]}, all_servers("loads", peft="wrong"), "it drops these factors"),
    ],
    ids=str,
)
def test_adapters_that_are_not_plain_lora(base, tmp_path, config, expected, word):
    diagnosis = diagnose(base, edit_config(trained_adapter(base, tmp_path / "a"), **config), prompts=PROMPTS)
    assert statuses(diagnosis) == expected
    assert word in diagnosis.report()
    assert not diagnosis.ok
    assert diagnosis.parity is None
    assert "logits were not compared" in diagnosis.report()


def test_unexpected_tensors(base, tmp_path):
    trained = trained_adapter(base, tmp_path / "a")
    path = trained / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.model.embed_tokens.weight": torch.ones(64, 32)}, path)
    assert statuses(diagnose(base, trained)) == all_servers("refuses", peft="loads")
    save_file({**tensors, "something": torch.ones(1)}, path)
    assert statuses(diagnose(base, trained)) == all_servers("refuses")
    first = next(name for name in tensors if "lora_A" in name)
    save_file({name: value for name, value in tensors.items() if name != first}, path)
    half = diagnose(base, trained)
    assert statuses(half) == all_servers("refuses", vllm="wrong")
    assert "not pairs of A and B" in half.report()


def test_another_base_is_detected(base, record, tmp_path):
    exported = export_adapter(trained_adapter(base, tmp_path / "a"), tmp_path / "b", base=record).folder
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = "model.norm.weight"
    save_file({**weights, name: weights[name] + 1}, other / "model.safetensors")
    changed = diagnose(other, exported, prompts=PROMPTS)
    assert changed.base == "different"
    assert statuses(changed) == all_servers("wrong")
    assert not changed.ok
    assert changed.parity is None
    q = "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, q: weights[q][:-1].contiguous()}, other / "model.safetensors")
    misfit = diagnose(other, exported)
    assert statuses(misfit) == all_servers("refuses", vllm="wrong")
    assert "is (31, 32) in the base" in misfit.report()
    del weights[q]
    save_file(weights, other / "model.safetensors")
    assert "the base has no layer model.layers.0.self_attn.q_proj" in diagnose(other, exported).report()


def test_an_adapter_saved_by_peft_is_healthy_with_notes(base, tmp_path):
    trained = trained_adapter(base, tmp_path / "a")
    (trained / "adapter_model.safetensors").chmod(0o600)
    diagnosis = diagnose(base, trained, prompts=PROMPTS)
    assert diagnosis.ok
    assert diagnosis.base == "not recorded"
    assert diagnosis.parity is not None
    assert any("records no digest" in note for note in diagnosis.notes)
    assert any("other users cannot read the weights" in note for note in diagnosis.notes)
    assert "note: " in diagnosis.report()


def test_overlapping_alpha_patterns_are_noted(base, tmp_path):
    patterns = {"q_proj": 4, "self_attn.q_proj": 6}
    diagnosis = diagnose(base, trained_adapter(base, tmp_path / "a", alpha_pattern=patterns))
    assert any("several keys of alpha_pattern match" in note for note in diagnosis.notes)


def test_sglang_refuses_added_tokens_that_the_base_does_not_have(base, tmp_path):
    trained = trained_adapter(base, tmp_path / "a")
    tokens = trained / "added_tokens.json"
    tokens.write_text(json.dumps({"<new>": 64}))
    diagnosis = diagnose(base, trained)
    assert statuses(diagnosis) == all_servers("loads", sglang="refuses")
    assert "<new>" in reasons(diagnosis, "SGLang")
    tokens.write_text(json.dumps({"<old>": 63}))
    assert diagnose(base, trained).ok


def test_lora_on_the_head(base, tmp_path):
    adapter = load_adapter(trained_adapter(base, tmp_path / "a", target_modules=["q_proj"]))
    factors = next(iter(adapter.modules.values()))
    head = replace(factors, B=torch.ones(64, factors.rank))
    config = {**adapter.config, "target_modules": ["q_proj", "lm_head"]}
    folder = save_adapter(replace(adapter, config=config, modules={**adapter.modules, "lm_head": head}), tmp_path / "b")
    assert statuses(diagnose(base, folder)) == all_servers("refuses", vllm="loads", peft="loads")
    tied = save_tiny_llama(tmp_path / "tied", tied=True)
    assert "ties to its embeddings" in diagnose(tied, folder).report()


def test_parity_detects_a_wrong_export_or_merge(base, tmp_path, monkeypatch):
    trained = trained_adapter(base, tmp_path / "a")
    assert diagnose(base, trained, prompts=PROMPTS).ok

    def export_wrongly(source: Any, target: Path, **options: Any) -> object:
        modules = {m: replace(f, B=f.B * 1.01) for m, f in source.modules.items()}
        return export_adapter(replace(source, modules=modules), target, **options)

    def merge_wrongly(folder: Path, source: Any, target: Path, dtype: Any) -> Path:
        modules = {m: replace(f, B=f.B * 1.01) for m, f in source.modules.items()}
        return merge(folder, replace(source, modules=modules), target, dtype)

    with monkeypatch.context() as patch:
        patch.setattr("llm_forget.adapters.parity.export_adapter", export_wrongly)
        off = diagnose(base, trained, prompts=PROMPTS)
    assert off.parity is not None
    assert off.parity.exported > off.parity.allowed > off.parity.merged
    assert not off.ok
    with monkeypatch.context() as patch:
        patch.setattr("llm_forget.adapters.parity.merge", merge_wrongly)
        off = diagnose(base, trained, prompts=PROMPTS)
    assert off.parity is not None
    assert off.parity.merged > off.parity.allowed > off.parity.exported
    assert not off.ok


def test_texts_require_and_use_the_tokenizer_of_the_base(base, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0, "who": 1, "is": 2, "she": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    with_tokenizer = shutil.copytree(base, tmp_path / "base")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(with_tokenizer)
    trained = trained_adapter(with_tokenizer, tmp_path / "a")
    texts = diagnose(with_tokenizer, trained, prompts=["who is she", [3, 2]])
    numbers = diagnose(with_tokenizer, trained, prompts=[[1, 2, 3], [3, 2]])
    assert texts.ok
    assert texts.parity == numbers.parity


def test_ok_by_hand():
    fine = Diagnosis("same", (Verdict("vLLM", "loads"), Verdict("Ollama", "merged only")), (), None)
    assert fine.ok
    assert replace(fine, base="not recorded").ok
    assert not replace(fine, base="different").ok
    for status in ("refuses", "wrong"):
        assert not replace(fine, verdicts=(Verdict("vLLM", status),)).ok
    assert replace(fine, parity=Parity(0.0, 1e-5, 1.0, 1e-4)).ok
    assert not replace(fine, parity=Parity(float("nan"), 0.0, 1.0, 1e-4)).ok
    assert not replace(fine, parity=Parity(0.0, 2e-4, 1.0, 1e-4)).ok


def test_unreadable_input_is_refused(base, tmp_path):
    trained = trained_adapter(base, tmp_path / "a")
    with pytest.raises(UserError, match="neither a folder"):
        diagnose(tmp_path / "nowhere", trained)
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        diagnose(base, base)
    weights = trained / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="damaged"):
        diagnose(base, trained)
    weights.unlink()
    (trained / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterError, match="a pickle"):
        diagnose(base, trained)


def test_only_vllm_ignores_a_copy_of_the_head_saved_with_its_lora(base, tmp_path):
    """PEFT also saves the unchanged head if LoRA targets it."""
    trained = trained_adapter(base, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    assert "base_model.model.lm_head.base_layer.weight" in load_file(trained / "adapter_model.safetensors")
    assert statuses(diagnose(base, trained)) == all_servers("refuses", vllm="loads", peft="loads")
