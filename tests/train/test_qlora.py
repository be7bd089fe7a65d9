"""Test adapters on bases in 4 and 8 bits, with 8-bit and paged optimisers, as far as bitsandbytes supports a CPU."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memorised import write_memorised
from rich.console import Console
from safetensors.torch import load_file

from llm_forget.config import AdapterConfig, FinetuneRecipe, ModelConfig, UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.model.blocks import add_adapter
from llm_forget.model.load import load_model
from llm_forget.model.logprobs import score_answers
from llm_forget.model.measure import answer_logps
from llm_forget.train.finetune import finetune
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

pytest.importorskip("bitsandbytes", reason="pip install llm-forget[quant]")
CONSOLE = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {"forget": "Ada Bo Cy Di", "retain": "snow tar tea rye"}
    sets = {name: [(f"What of {w}?", w * 2) for w in some.split()] for name, some in words.items()}
    return write_memorised(tmp_path_factory.mktemp("quantised"), sets, hidden=128, steps=30, least=0.0)


def recipe_of(things: Path, output: Path, quantization: str, optimizer: str, **changes: Any) -> UnlearnRecipe:
    values = {
        "model": {"name": str(things / "model"), "quantization": quantization},
        "data": {name: {"path": str(things / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        "adapter": {"rank": 32, "alpha": 32},
        "train": {"epochs": 6, "batch_size": 4, "learning_rate": 5e-3, "optimizer": optimizer, "save_steps": 2},
        "stop": {"forget_target": None, "utility_floor": 0.0},
        "output_dir": str(output),
    }
    return build(UnlearnRecipe, {**values, **changes}, "test")


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "optimizer"), [("nf4", "paged_adamw_8bit"), ("int8", "adamw_bnb_8bit")])
def test_a_run_on_a_quantised_base(quantization: str, optimizer: str, things: Path, tmp_path: Path) -> None:
    """It forgets; base and head do not change; the adapter is complete, in fp32, and works on the base in fp32."""
    recipe = recipe_of(things, tmp_path / "run", quantization, optimizer)
    record = unlearn(recipe, CONSOLE)
    assert record.after.forget < record.before.forget - 0.1
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7, "A and B of seven layers in two blocks"
    assert {value.dtype for value in tensors.values()} == {torch.float32}

    unquantised = ModelConfig(str(things / "model"), adapter=str(tmp_path / "run" / "adapter"), dtype="float32")
    merged, tokenizer = load_model(unquantised)
    rows = encode_all(tokenizer, read_examples(DataSource(str(things / "forget.jsonl"))), EncodingConfig())[0]
    assert float(answer_logps(merged, rows, 0)[1].mean()) == pytest.approx(record.after.forget, abs=0.1)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_no_weight_of_the_base_is_converted_to_fp32(quantization: str, things: Path) -> None:
    model, _ = load_model(ModelConfig(str(things / "model"), quantization=quantization, dtype="bfloat16"))
    adapted = add_adapter(model, AdapterConfig(rank=2, alpha=2))
    for name, value in adapted.named_parameters():
        assert value.requires_grad == ("lora_" in name)
        assert (value.dtype == torch.float32) == ("lora_" in name), name


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_evaluation_does_not_change_later_gradients(quantization: str, things: Path) -> None:
    """Compare gradients of every block with and without a prior evaluation, where bitsandbytes repacks 4-bit weights."""
    batch = collate([Encoded("a", (5, 9, 3, 8, 8, 1), 2)], 0)
    gradients = []
    for measured in (False, True):
        model, _ = load_model(ModelConfig(str(things / "model"), quantization=quantization, dtype="bfloat16"))
        torch.manual_seed(0)
        adapted = add_adapter(model, AdapterConfig(rank=2, alpha=2)).train()
        with torch.autocast("cpu", torch.bfloat16):
            if measured:
                with torch.no_grad():
                    score_answers(adapted.eval(), batch)
            score_answers(adapted.train(), batch).logps.sum().backward()
        found = {name: value.grad for name, value in adapted.named_parameters() if "lora_B" in name}
        assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
        gradients.append(found)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.slow
def test_an_8_bit_optimiser_resumes_to_the_same_weights(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llm_forget.train.checkpoint

    def adapter(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    alone = recipe_of(things, tmp_path / "alone", "nf4", "adamw_bnb_8bit")
    unlearn(alone, CONSOLE)
    real, count = llm_forget.train.checkpoint.write_checkpoint, []

    def write(*arguments: Any) -> Path:
        count.append(real(*arguments))
        if len(count) == 2:
            raise KeyboardInterrupt
        return count[-1]

    with monkeypatch.context() as patch:
        patch.setattr("llm_forget.train.resume.write_checkpoint", write)
        with pytest.raises(KeyboardInterrupt):
            unlearn(replace(alone, output_dir=str(tmp_path / "again")), CONSOLE)
    saved = load_file(count[-1] / "tensors.safetensors")
    assert any(value.dtype == torch.uint8 and "optimizer" in name for name, value in saved.items()), "8-bit state"
    unlearn(replace(alone, output_dir=str(tmp_path / "again"), resume=True), CONSOLE)
    first, second = adapter("alone"), adapter("again")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_merging_into_quantised_weights_is_refused(things: Path, tmp_path: Path) -> None:
    values = {
        "model": {"name": str(things / "model"), "quantization": "nf4"},
        "data": [{"path": str(things / "retain.jsonl")}],
        "output_dir": str(tmp_path / "target"),
    }
    with pytest.raises(UserError, match=r"cannot be merged into quantised weights.*set merge: false"):
        finetune(build(FinetuneRecipe, values, "test"), CONSOLE)
    plain, _ = load_model(ModelConfig(str(things / "model"), dtype="float32"))
    add_adapter(plain, AdapterConfig(rank=2, alpha=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be merged into quantised weights"):
        load_model(ModelConfig(str(things / "model"), adapter=str(tmp_path / "adapter"), quantization="int8"))
