"""Test exported files by the loading rules that SGLang and llama.cpp document, without running these servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapter_examples import PEFT_SETTINGS, change, largest, save_tiny_llama, trained_adapter
from safetensors.torch import load_file
from torch import Tensor

from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, load_adapter
from llm_forget.utils.digests import stored_tensors, weights_digest


def factors_in(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B by the name of the base weight; llama.cpp's converter fails on names of any other form."""
    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, side = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        assert name == f"base_model.model.{stem}.{side}.weight"
        assert side in ("lora_A", "lora_B")
        found.setdefault(f"{stem}.weight", {})[side] = tensor
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def as_sglang_reads(folder: Path) -> dict[str, Tensor]:
    """Compute ΔW = lora_alpha / r · B A; use_rslora and patterns are ignored, and each layer has one buffer of r rows."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not (folder / "added_tokens.json").exists()
    assert not config["use_dora"]
    pairs = factors_in(folder)
    assert all(a.shape[0] == config["r"] for a, _ in pairs.values())
    return {name: (b.double() @ a.double()) * config["lora_alpha"] / config["r"] for name, (a, b) in pairs.items()}


def as_llama_cpp_reads(folder: Path) -> dict[str, Tensor]:
    """Compute ΔW = lora_alpha / rows of A · B A; the GGUF stores only lora_alpha, and 0 would mean no scaling at all."""
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    assert alpha > 0
    return {name: (b.double() @ a.double()) * alpha / a.shape[0] for name, (a, b) in factors_in(folder).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("read", [as_sglang_reads, as_llama_cpp_reads])
@pytest.mark.parametrize("config", PEFT_SETTINGS, ids=str)
def test_exported_files_give_the_trained_delta(base: Path, tmp_path: Path, config: dict[str, Any], read: Any) -> None:
    raw = trained_adapter(base, tmp_path / "raw", **config)
    record = BaseRecord("org/tiny", None, weights_digest(base))
    served = read(export_adapter(raw, tmp_path / "out", base=record).folder)
    trained = load_adapter(raw)
    assert served.keys() == {f"{module}.weight" for module in trained.modules}
    assert served.keys() <= stored_tensors(base).keys()
    for module in trained.modules:
        wanted = change(trained, module)
        assert largest(served[f"{module}.weight"] - wanted) <= 1e-6 * max(1.0, largest(wanted))
