"""Test that a merged model gives the logits of base and adapter under PEFT, and that nothing else in it changes."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import PEFT_SETTINGS, largest, logits, save_tiny_llama, tiny_llama, trained_adapter
from safetensors.torch import load_file, save_file

from llm_forget.adapters.arithmetic import delta, negate
from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, Factors, load_adapter, save_adapter
from llm_forget.adapters.merge import merge
from llm_forget.errors import AdapterError, UserError
from llm_forget.utils.digests import weights_digest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def record(base: Path) -> BaseRecord:
    return BaseRecord("org/tiny", None, weights_digest(base))


@pytest.mark.parametrize("config", PEFT_SETTINGS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_model_gives_the_logits_of_peft(tmp_path, config, tied):
    base = save_tiny_llama(tmp_path / "base", tied=tied)
    trained = trained_adapter(base, tmp_path / "trained", **config)
    merged = merge(base, trained, tmp_path / "merged")
    assert largest(logits(merged) - logits(base, trained)) < 1e-5
    assert largest(logits(merged) - logits(base)) > 1e-2


def test_merging_the_negated_adapter_is_base_minus_effect(base, tmp_path):
    adapter = load_adapter(trained_adapter(base, tmp_path / "trained"))
    merged = load_file(merge(base, negate(adapter), tmp_path / "merged") / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert merged.keys() == before.keys()
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module in adapter.modules:
            assert torch.equal(merged[name], weight - delta(adapter, module))
        else:
            assert torch.equal(merged[name], weight)


def test_shards_index_and_other_files_are_kept(tmp_path):
    base = save_tiny_llama(tmp_path / "base", max_shard_size="20KB")
    shards = sorted(p.name for p in base.glob("*.safetensors"))
    assert len(shards) > 2
    (base / "tokenizer.json").write_text("{}")
    (base / "README.md").write_text("the base's own card")
    (base / "pytorch_model.bin").write_bytes(b"old weights")
    (base / ".hidden").write_text("x")
    (base / "original").mkdir()
    trained = trained_adapter(base, tmp_path / "trained")
    merged = merge(base, trained, tmp_path / "merged", method="NPO", results={"forget": 0.1})
    assert sorted(p.name for p in merged.iterdir()) == sorted(
        [
            *shards,
            "model.safetensors.index.json",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "README.md",
        ]
    )
    assert {stat.S_IMODE(p.stat().st_mode) & 0o044 for p in merged.iterdir()} == {0o044}
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards for t in load_file(merged / s).values())
    card = (merged / "README.md").read_text()
    assert weights_digest(base) in card
    assert "Method: NPO." in card
    assert "| forget | 0.1 |" in card
    assert "encodes the forget set" in card
    assert largest(logits(merged) - logits(base, trained)) < 1e-5


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab-src.json", "merges.txt", "vocab.bpe", "spiece.model", "tekken.json", "qwen.tiktoken", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "modeling_own.py",
    "LICENSE", "additional_chat_templates/tool_use.jinja", "templates/rag.jinja",
)  # fmt: skip
STALE_FILES = (
    "pytorch_model.bin", "consolidated.00.pth", "model.gguf", "optimizer.pt", "training_args.bin", "trainer_state.json",
    "adapter_model.bin", "consolidated.safetensors", "pytorch_model.bin.index.json", ".gitattributes", "README.md",
    "original/consolidated.00.pth", "original/params.json", "checkpoint-5/config.json", "checkpoint-5/tokenizer.json",
    "lora/adapter_config.json", "lora/chat_template.jinja", "onnx/model.onnx", "onnx/tokenizer.json", ".cache/x.json",
    "figures/loss.png",
)  # fmt: skip


def test_everything_but_weights_and_other_models_survives(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "base")
    for name in (*TOKENIZER_FILES, *STALE_FILES):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f"{name} of the base")
    (base / "generation_config.json").write_text("{}")
    merged = merge(base, trained_adapter(base, tmp_path / "trained"), tmp_path / "merged")
    found = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
    assert found == {*TOKENIZER_FILES, "config.json", "model.safetensors", "README.md"}
    assert all((merged / name).read_bytes() == (base / name).read_bytes() for name in TOKENIZER_FILES)
    assert "README.md of the base" not in (merged / "README.md").read_text()


def test_the_files_that_transformers_loads_are_merged(tmp_path: Path) -> None:
    """Next to a single file an index of other shards is refused; an index is written only for several shards."""
    base = save_tiny_llama(tmp_path / "base")
    trained = trained_adapter(base, tmp_path / "trained")
    index = base / "model.safetensors.index.json"
    names = load_file(base / "model.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    merged = merge(base, trained, tmp_path / "merged")
    assert not (merged / index.name).exists()
    assert largest(logits(merged) - logits(base, trained)) < 1e-5
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "other.safetensors")}))
    with pytest.raises(UserError, match="Keep one copy of the weights"):
        merge(base, trained, tmp_path / "two")
    # an index that misses a tensor of its shards: all tensors of the shards are loaded, and written into the new index
    sharded = save_tiny_llama(tmp_path / "sharded", max_shard_size="20KB")
    content = json.loads((sharded / index.name).read_text())
    shards = list(content["weight_map"].values())
    gone = next(name for name, shard in content["weight_map"].items() if shards.count(shard) > 1)
    del content["weight_map"][gone]
    (sharded / index.name).write_text(json.dumps(content))
    whole = merge(sharded, trained, tmp_path / "whole")
    assert gone in json.loads((whole / index.name).read_text())["weight_map"]
    assert largest(logits(whole) - logits(merged)) < 1e-6


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", None), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_dtypes_are_kept_or_cast_once_from_fp32(tmp_path, stored, wanted):
    tiny_llama().to(getattr(torch, stored)).save_pretrained(tmp_path / "base")
    adapter = load_adapter(trained_adapter(tmp_path / "base", tmp_path / "trained"))
    merged = merge(tmp_path / "base", adapter, tmp_path / "merged", wanted)
    kept = getattr(torch, wanted or stored)
    before, after = load_file(tmp_path / "base" / "model.safetensors"), load_file(merged / "model.safetensors")
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        changed = weight.float() + delta(adapter, module) if module in adapter.modules else weight
        assert torch.equal(after[name], changed.to(kept))
    config = json.loads((merged / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == (wanted or stored)


def test_convolution_style_layers_are_merged_transposed(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "base")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    peft_model = get_peft_model(
        model, LoraConfig(r=3, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    peft_model.save_pretrained(tmp_path / "trained")
    wanted = logits(tmp_path / "base", tmp_path / "trained")
    record = BaseRecord("org/gpt", None, weights_digest(tmp_path / "base"))
    exported = export_adapter(tmp_path / "trained", tmp_path / "exported", base=record)
    assert largest(logits(tmp_path / "base", exported.folder) - wanted) < 1e-5
    merged = merge(tmp_path / "base", tmp_path / "trained", tmp_path / "merged")
    assert largest(logits(merged) - wanted) < 1e-5
    # The same weights as saved by a model class without a head: names lack their first component.
    bare = shutil.copytree(tmp_path / "base", tmp_path / "bare")
    weights = load_file(bare / "model.safetensors")
    bare_weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    save_file(bare_weights, bare / "model.safetensors", {"format": "pt"})
    assert largest(logits(merge(bare, tmp_path / "trained", tmp_path / "merged_bare")) - wanted) < 1e-5


def copy_base(base: Path, folder: Path, **config: Any) -> Path:
    copy = shutil.copytree(base, folder)
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return copy


def test_invalid_merges_are_refused(base, record, tmp_path):
    trained = trained_adapter(base, tmp_path / "trained")
    adapter = load_adapter(trained)
    out = tmp_path / "out"
    quantised = copy_base(base, tmp_path / "nf4", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(AdapterError, match=r"quantised \(bitsandbytes\).*fp32, bf16 or fp16"):
        merge(quantised, trained, out)

    packed = copy_base(base, tmp_path / "int8")
    weights = load_file(packed / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, packed / "model.safetensors")
    with pytest.raises(AdapterError, match=rf"stores {name} as I8, a quantised dtype"):
        merge(packed, trained, out)
    save_file({**weights, name: weights[name][:-1].contiguous()}, packed / "model.safetensors")
    with pytest.raises(AdapterError, match=r"is \(31, 32\) where the adapter expects \(32, 32\)"):
        merge(packed, trained, out)
    del weights[name]
    save_file(weights, packed / "model.safetensors")
    with pytest.raises(AdapterError, match=rf"no weight {name}"):
        merge(packed, trained, out)

    with pytest.raises(AdapterError, match=r"another model, or another revision"):
        merge(base, replace(adapter, base=BaseRecord("x", None, "2" * 64)), out)
    merge(base, replace(adapter, base=record), tmp_path / "right")
    with pytest.raises(AdapterError, match="is the base itself"):
        merge(base, trained, base, overwrite=True)
    with pytest.raises(AdapterError, match=r"no config\.json"):
        merge(tmp_path, trained, out)
    (packed / "config.json").write_text("nope")
    with pytest.raises(AdapterError, match="not a JSON mapping"):
        merge(packed, trained, out)
    head = Factors(torch.ones(1, 32), torch.ones(64, 1), 1.0)
    with_head = replace(adapter, modules={**adapter.modules, "lm_head": head})
    with pytest.raises(AdapterError, match=r"changes lm_head, and this base ties"):
        merge(copy_base(base, tmp_path / "tied", tie_word_embeddings=True), with_head, out)
    loud = replace(adapter, modules={m: replace(f, scaling=1e9) for m, f in adapter.modules.items()})
    with pytest.raises(AdapterError, match=r"too large for torch\.float16"):
        merge(base, loud, out, "float16")
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_untied_head_is_merged(base, tmp_path):
    adapter = load_adapter(trained_adapter(base, tmp_path / "trained"))
    head = Factors(torch.ones(1, 32), torch.linspace(-1, 1, 64)[:, None], 1.0)
    config = {**adapter.config, "target_modules": [*adapter.config["target_modules"], "lm_head"], "rank_pattern": {}}
    ones = {m: Factors(f.A[:1], f.B[:, :1], 1.0) for m, f in adapter.modules.items()}
    with_head = replace(adapter, config={**config, "r": 1, "lora_alpha": 1}, modules={**ones, "lm_head": head})
    folder = save_adapter(with_head, tmp_path / "with_head")
    assert largest(logits(merge(base, folder, tmp_path / "merged")) - logits(base, folder)) < 1e-5
