"""Test that an exported adapter gives the logits of the trained adapter, and that its files keep the export contract."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapter_examples import (
    BASE,
    PEFT_SETTINGS,
    SHAPES,
    adapters,
    change,
    largest,
    logits,
    random_adapter,
    save_tiny_llama,
    scale_of,
    trained_adapter,
)
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from llm_forget.adapters.arithmetic import combine, delta
from llm_forget.adapters.card import vllm_rank
from llm_forget.adapters.export import export_adapter, public_name
from llm_forget.adapters.lora import BaseRecord, Factors, load_adapter, read_base_record, save_adapter
from llm_forget.adapters.merge import merge
from llm_forget.errors import AdapterError
from llm_forget.utils.digests import weights_digest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def record(base: Path) -> BaseRecord:
    return BaseRecord("org/tiny", None, weights_digest(base))


def assert_contract(folder: Path, max_rank: int) -> None:
    """Check the export contract from the files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert config["peft_type"] == "LORA"
    assert isinstance(config["r"], int)
    assert 1 <= config["r"] <= max_rank
    assert config["lora_alpha"] == config["r"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["use_rslora"] is config["use_dora"] is False
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    assert config["init_lora_weights"] is True
    assert isinstance(config["target_modules"], list)
    for name in config["target_modules"]:
        assert name.replace("_", "").replace(".", "").isalnum()
    ranks = {t.shape[0] if ".lora_A." in n else t.shape[1] for n, t in tensors.items()}
    assert ranks == {config["r"]}
    assert len({t.dtype for t in tensors.values()}) == 1
    assert stat.S_IMODE((folder / "adapter_model.safetensors").stat().st_mode) & stat.S_IROTH
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert card["base_model"] == config["base_model_name_or_path"]
    assert len(card["base_model_digest"]) == 64


@pytest.mark.parametrize("config", PEFT_SETTINGS, ids=str)
def test_peft_gives_the_same_logits_with_the_exported_adapter(base, record, tmp_path, config):
    trained = trained_adapter(base, tmp_path / "trained", **config)
    exported = export_adapter(trained, tmp_path / "exported", base=record)
    assert_contract(exported.folder, 16)
    assert exported.residual == 0.0
    assert exported.rounding < 1e-6
    wanted = logits(base, trained)
    assert largest(logits(base, exported.folder) - wanted) < 1e-5
    assert largest(wanted - logits(base)) > 1e-2
    assert load_adapter(exported.folder).modules.keys() == load_adapter(trained).modules.keys()
    if not config:
        assert load_adapter(exported.folder).config["target_modules"] == ["down_proj", "q_proj", "v_proj"]


@settings(max_examples=20, deadline=None)
@given(adapter=adapters())
def test_without_truncation_only_rounding_changes(tmp_path_factory, adapter):
    exported = export_adapter(adapter, tmp_path_factory.mktemp("x") / "out", max_rank=64)
    again = load_adapter(exported.folder)
    assert exported.rank == adapter.rank
    assert exported.residual == 0.0
    for module in adapter.modules:
        assert largest(delta(again, module).double() - change(adapter, module)) <= 1e-5 * scale_of(adapter)
    assert_contract(exported.folder, 64)


def test_a_difference_of_adapters_is_exported_with_its_sign(base, record, tmp_path):
    good = load_adapter(trained_adapter(base, tmp_path / "good", seed=1, r=3))
    bad = load_adapter(trained_adapter(base, tmp_path / "bad", seed=2, r=5, use_rslora=True))
    trained = save_adapter(combine([good, bad], [1.0, -0.7]), tmp_path / "both")
    exported = export_adapter(trained, tmp_path / "exported", base=record)
    assert_contract(exported.folder, 16)
    assert exported.rank == 8
    assert largest(logits(base, exported.folder) - logits(base, trained)) < 1e-5


def test_strength_is_folded_into_b_before_the_cast():
    adapter = random_adapter(ranks=(4,), alphas=(7,), rslora=True)
    name = next(iter(SHAPES))
    factors = adapter.modules[name]
    wanted_b = (factors.B * factors.scaling).to(torch.bfloat16)
    cast_first = factors.B.to(torch.bfloat16) * factors.scaling
    assert not torch.equal(wanted_b, cast_first)

    def exported_b(tmp: Path, **options: Any) -> tuple[torch.Tensor, float]:
        result = export_adapter(adapter, tmp, dtype="bfloat16", overwrite=True, **options)
        return load_adapter(result.folder).modules[name].B, result.rounding

    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        stored, rounding = exported_b(Path(scratch) / "out")
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, wanted_b)
    assert 1e-4 < rounding < 1e-2


def test_lossy_truncation_is_refused_and_the_needed_rank_is_named(tmp_path):
    adapter = random_adapter(ranks=(20, 3))
    with pytest.raises(AdapterError) as error:
        export_adapter(adapter, tmp_path / "x")
    message = str(error.value)
    assert "at rank 16 this adapter (rank 20) loses" in message
    assert "allow_lossy=True" in message
    assert "--max-lora-rank 32" in message
    assert not (tmp_path / "x").exists()
    advised = int(message.split("max_rank=")[1].split()[0])
    assert 16 < advised <= 20
    assert export_adapter(adapter, tmp_path / "y", max_rank=advised).residual <= 1e-3
    with pytest.raises(AdapterError, match="loses"):
        export_adapter(adapter, tmp_path / "x", max_rank=advised - 1)
    lossy = export_adapter(adapter, tmp_path / "z", allow_lossy=True)
    lost = sum(float((change(load_adapter(lossy.folder), m) - change(adapter, m)).norm()) ** 2 for m in SHAPES)
    whole = sum(float(change(adapter, m).norm()) ** 2 for m in SHAPES)
    assert lossy.residual == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert lossy.rounding == pytest.approx(lossy.residual, rel=1e-4)
    assert f"lost {lossy.residual:.2e} of the change" in (lossy.folder / "README.md").read_text()
    assert_contract(lossy.folder, 16)


def test_redundant_stacked_ranks_are_truncated_without_loss(tmp_path):
    adapter = random_adapter(ranks=(8,))
    tripled = combine([adapter, adapter, adapter], [1, 1, 1])
    exported = export_adapter(tripled, tmp_path / "x")
    assert exported.rank == 16
    assert exported.rounding < 1e-6
    nothing = export_adapter(combine([tripled, tripled], [1, -1]), tmp_path / "zero")
    assert largest(delta(load_adapter(nothing.folder), next(iter(SHAPES)))) < 1e-4


def test_smaller_ranks_are_padded_with_zeros(tmp_path):
    exported = load_adapter(export_adapter(random_adapter(ranks=(6, 2)), tmp_path / "x").folder)
    padded = exported.modules["model.layers.0.mlp.down_proj"]
    assert padded.rank == 6
    assert padded.A[2:].abs().sum() == padded.B[:, 2:].abs().sum() == 0
    assert padded.A[:2].abs().sum() > 0


def test_exporting_an_export_changes_nothing(tmp_path):
    first = export_adapter(random_adapter(ranks=(6, 2), rslora=True), tmp_path / "a")
    second = export_adapter(first.folder, tmp_path / "b")
    # The card states the distance from its source, so it may differ.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_the_card_has_all_required_statements(tmp_path):
    results = {"forget probability": 0.0125, "retain | all": "0.93 ± 0.01", "epochs": 5}
    folder = export_adapter(random_adapter(), tmp_path / "x", method="NPO, beta 0.1.", results=results).folder
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "org/tiny"
    assert front["base_model_revision"] == "abc"
    assert front["base_model_digest"] == BASE.digest
    assert front["library_name"] == "peft"
    assert "Method: NPO, beta 0.1." in card
    assert "| forget probability | 0.0125 |" in card
    assert r"| retain \| all | 0.93 ± 0.01 |" in card
    assert "| epochs | 5 |" in card
    flat = " ".join(card.split())
    assert "Unloading the adapter, or serving it at strength 0, brings it back" in flat
    assert "share only the merged weights" in flat
    assert "encode the forget set, whichever sign" in flat
    assert "--max-lora-rank 8" in card
    bare = (export_adapter(random_adapter(), tmp_path / "y").folder / "README.md").read_text()
    assert "None recorded" in bare
    assert "method was not recorded" in bare


def test_the_digest_is_read_from_the_card_if_the_metadata_is_missing(tmp_path):
    folder = export_adapter(random_adapter(), tmp_path / "x").folder
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # drops the metadata
    assert read_base_record(folder) == BASE


def test_no_local_path_is_exported(base, record, tmp_path):
    trained = trained_adapter(base, tmp_path / "trained")
    assert str(base) in (trained / "adapter_config.json").read_text()
    folder = export_adapter(trained, tmp_path / "exported", base=BaseRecord(digest=record.digest)).folder
    merged = merge(base, trained, tmp_path / "merged")
    for path in (*folder.iterdir(), *merged.iterdir()):
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path
    assert load_adapter(folder).base.name == base.name
    assert public_name("org/model") == "org/model"
    assert public_name("gpt2") == "gpt2"
    assert public_name("/a/b/model/") == public_name("a/b/model") == public_name("./model") == "model"


def test_ranks_of_vllm():
    assert [vllm_rank(r) for r in (1, 2, 8, 9, 64, 65, 257, 512, 513)] == [1, 8, 8, 16, 64, 128, 320, 512, None]


def test_invalid_exports_are_refused(tmp_path, monkeypatch):
    adapter, out = random_adapter(), tmp_path / "x"
    for unknown, missing in [(BaseRecord("org/tiny"), "no digest"), (BaseRecord(), "no name and no digest")]:
        with pytest.raises(AdapterError, match=rf"records {missing} of its base.*weights_digest"):
            export_adapter(replace(adapter, base=unknown), out)
    with pytest.raises(AdapterError, match="another model"):
        export_adapter(adapter, out, base=BaseRecord(digest="2" * 64))
    monkeypatch.setitem(SHAPES, "lm_head", (24, 20))
    with pytest.raises(AdapterError, match="changes lm_head"):
        export_adapter(random_adapter(modules=["lm_head"]), out)
    with pytest.raises(AdapterError, match=r"int8 given; float32, bfloat16, float16"):
        export_adapter(adapter, out, dtype=torch.int8)
    with pytest.raises(AdapterError, match="dtype half"):
        export_adapter(adapter, out, dtype="half")
    with pytest.raises(AdapterError, match="rank 0"):
        export_adapter(adapter, out, max_rank=0)
    name = next(iter(SHAPES))
    factors = adapter.modules[name]
    loud = replace(adapter, modules={**adapter.modules, name: Factors(factors.A, factors.B * 1e5, factors.scaling)})
    with pytest.raises(AdapterError, match=r"too large for torch\.float16; use bfloat16"):
        export_adapter(loud, out, dtype=torch.float16)
    assert not out.exists()
    out.mkdir()
    (out / "keep.txt").write_text("x")
    with pytest.raises(AdapterError, match="already exists"):
        export_adapter(adapter, out)
