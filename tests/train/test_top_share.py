"""Test adapters on the top blocks only: which blocks, no activations saved for lower blocks, and a complete run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llm_forget.config import AdapterConfig, UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.model.blocks import add_adapter, block_of, top_blocks
from llm_forget.model.logprobs import score_answers
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.build import build


@pytest.mark.parametrize(
    ("share", "depth", "expected"),
    [(1.0, 30, None), (1 / 3, 30, range(20, 30)), (0.5, 3, range(1, 3)), (0.01, 4, range(3, 4)), (0.99, 4, None)],
)
def test_selected_blocks(share: float, depth: int, expected: range | None) -> None:
    assert top_blocks(AdapterConfig(top_share=share), depth) == expected


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_invalid_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"top_share is .*above 0 and at most 1"):
        AdapterConfig(top_share=share)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_backward_ends_at_the_lowest_block_with_an_adapter(checkpointing: Any, tmp_path: Path) -> None:
    """In the steps of a run, only the last of three blocks has states with a gradient; with adapters on all, all have."""
    from llm_forget.train.unlearn import unlearn

    found: list[list[bool]] = []
    for share in (1.0, 0.34):
        seen: dict[int, bool] = {}

        def look(module: nn.Module, args: Any, out: Any, seen: dict[int, bool] = seen) -> None:
            if torch.is_grad_enabled() and isinstance(module, LlamaDecoderLayer):
                seen[module.self_attn.layer_idx] = bool(out.requires_grad)

        handle = register_module_forward_hook(look)
        try:
            train = {"epochs": 1, "batch_size": 2, "gradient_checkpointing": checkpointing}
            changes = {"adapter": {"rank": 2, "alpha": 2, "top_share": share}, "train": train}
            unlearn(build(UnlearnRecipe, values(tmp_path, overwrite=True, **changes), "test"))
        finally:
            handle.remove()
        found.append([seen[place] for place in sorted(seen)])
    assert found == [[True, True, True], [False, False, True]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_ends_at_the_lowest_block_in_fine_tuning_too(checkpointing: bool, tmp_path: Path) -> None:
    from llm_forget.config import FinetuneRecipe
    from llm_forget.train.finetune import finetune

    given = values(tmp_path)
    recipe = {
        "model": given["model"],
        "data": [given["data"]["retain"]],
        "adapter": given["adapter"],
        "train": {"epochs": 1, "batch_size": 2, "gradient_checkpointing": checkpointing},
        "output_dir": str(tmp_path / "learned"),
    }
    seen: dict[int, bool] = {}
    recomputed: set[bool] = set()

    def look(module: nn.Module, args: Any, out: Any) -> None:
        if module.training and isinstance(module, LlamaDecoderLayer):
            seen[module.self_attn.layer_idx] = bool(out.requires_grad)
            recomputed.add(bool(module.gradient_checkpointing))

    handle = register_module_forward_hook(look)
    try:
        finetune(build(FinetuneRecipe, recipe, "test"))
    finally:
        handle.remove()
    assert [seen[place] for place in sorted(seen)] == [False, False, True]
    assert recomputed == {checkpointing}, "TRL's default is not the recipe's"


def test_no_activations_are_saved_below_the_adapters() -> None:
    """Compare the bytes saved for backward with adapters on one of four blocks and on all."""
    kept = []
    for share in (1.0, 0.25):
        model = add_adapter(tiny_model(tiny_tokenizer(), layers=4), AdapterConfig(rank=2, alpha=2, top_share=share))
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.update({tensor.untyped_storage()._cdata: tensor.nbytes}) or tensor,
            lambda tensor: tensor,
        ):
            scores = score_answers(model, collate([Encoded("a", (5, 9, 3, 8, 8, 1), 2)], 0))
        scores.logps.sum().backward()  # type: ignore[no-untyped-call]
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("ALL-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["self_attn.q_proj", "down_proj"], {"q_proj", "down_proj"}),
        (r".*\.(q|v)_proj", {"q_proj", "v_proj"}),
    ],
)
def test_target_modules_select_the_same_layers_on_some_blocks_as_on_all(targets: Any, expected: set[str]) -> None:
    for share, blocks in ((1.0, {0, 1}), (0.5, {1})):
        model = add_adapter(tiny_model(tiny_tokenizer()), AdapterConfig(target_modules=targets, top_share=share))
        names = [name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name]
        assert {name.rpartition(".")[2] for name in names} == expected
        assert {block_of(name) for name in names} == blocks


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("targets", ["(", "no_such_layer", ["no_such_layer"]])
def test_targets_without_a_match_are_refused(targets: Any, share: float) -> None:
    with pytest.raises(RecipeError, match=r"adapter.target_modules: .* matches no layer of the model"):
        add_adapter(tiny_model(tiny_tokenizer()), AdapterConfig(target_modules=targets, top_share=share))


def test_linear_layers_with_other_names() -> None:
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    model = add_adapter(AutoModelForCausalLM.from_config(config), AdapterConfig(rank=2, alpha=2, top_share=0.5))
    assert {block_of(name) for name, _ in model.named_parameters() if "lora_A" in name} == {2, 3}


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for part in ("forget", "retain"):
        rows = [{"question": f"{part} {row}?", "answer": f"the {part} one"} for row in range(4)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(folder / "model")},
        "data": {part: {"path": str(folder / f"{part}.jsonl")} for part in ("forget", "retain")},
        "adapter": {"rank": 2, "alpha": 2, "top_share": 0.34},
        "train": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
        "method": {"name": "npo"},
        "stop": {"forget_target": None, "utility_floor": 0.0},
        "output_dir": str(folder / "run"),
        **changes,
    }


@pytest.mark.parametrize("method", ["npo", "adapter_subtraction"])
def test_a_run_saves_an_adapter_on_the_top_blocks_only_and_peft_loads_it(method: str, tmp_path: Path) -> None:
    from peft import PeftModel

    from llm_forget.train.unlearn import unlearn

    unlearn(build(UnlearnRecipe, values(tmp_path, method={"name": method}), "test"))
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {block_of(name) for name in tensors} == {2}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")(ids).logits
    assert (after - before).abs().max() > 1e-3


def test_a_method_that_chooses_its_blocks_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    from llm_forget.train.build import make_parts

    recipe = build(UnlearnRecipe, values(tmp_path, method={"name": "rmu"}), "test")
    with pytest.raises(RecipeError, match=r"top_share is 0.34, but the method rmu chooses .* remove top_share"):
        make_parts(recipe)


def test_a_retain_term_on_states_below_all_adapters_is_refused(tmp_path: Path) -> None:
    """At 7/32 of three blocks it reads block 1, which would never change; block 2 has an adapter."""
    from llm_forget.train.unlearn import unlearn

    retain: dict[str, Any] = {"name": "activation"}
    with pytest.raises(
        RecipeError, match=r"block 2 is the lowest .*hidden states of block 1, .*set layer to 2 or more"
    ):
        unlearn(build(UnlearnRecipe, values(tmp_path, retain=retain), "test"))
    retain["settings"] = {"layer": 3}
    with pytest.raises(RecipeError, match="layer is 3; give a block of this model, from 0 to 2"):
        unlearn(build(UnlearnRecipe, values(tmp_path, retain=retain), "test"))
    retain["settings"] = {"layer": 2}
    unlearn(build(UnlearnRecipe, values(tmp_path, retain=retain), "test"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("retain_loss", 0.0) for row in rows) > 0


def test_an_adapter_on_the_head_is_refused_before_training(tmp_path: Path) -> None:
    from architectures import tiny

    from llm_forget import unlearn

    tokenizer = tiny_tokenizer()
    asked = [{"question": f"Where is {place}?", "answer": "There."} for place in range(2)]
    settings = {"adapter": {"rank": 2, "alpha": 2, "target_modules": ["q_proj", "lm_head"]}, "epochs": 1}
    model = tiny("llama", tokenizer, tie_word_embeddings=False)
    with pytest.raises(RecipeError, match="selects the language-model head"):
        unlearn(model, tokenizer, forget=asked, method="grad_ascent", output_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
