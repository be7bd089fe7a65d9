"""Test the memory plan against measured runs, against arithmetic for an 8B model, and on invalid input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_config
from places import HELPERS
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import llm_forget
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.memory.plan import GB, Plan, largest_batch, parse_memory, plan
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.build import build, load_recipe

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
CASES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"rank": 16, "alpha": 16}, "train": {"batch_size": 6}},
    "checkpointing and kl": {
        "adapter": {"rank": 16, "alpha": 16},
        "retain": {"name": "kl"},
        "train": {"batch_size": 8, "gradient_checkpointing": True},
    },
    "selective": {
        "adapter": {"rank": 16, "alpha": 16},
        "train": {"batch_size": 8, "gradient_checkpointing": "selective"},
    },
    "top third": {"adapter": {"rank": 16, "alpha": 16, "top_share": 0.34}, "train": {"batch_size": 8}},
    "full": {"adapter": None, "train": {"batch_size": 4}},
    # choosing the inputs of the adapter takes more than a step
    "natural": {
        "adapter": {"rank": 16, "alpha": 16, "inputs": "forget"},
        "retain": {"name": "kl", "weight": 0.0},
        "train": {"batch_size": 8, "optimizer": "natural", "schedule": "constant"},
    },
}


def recipe_of(folder: Path, name: str, hidden: int, tokens: int, **changes: Any) -> dict[str, Any]:
    """Return a recipe of one or two steps on random weights, with all rows truncated to ``tokens`` tokens."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        tie_word_embeddings=True,
        dtype="float32",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / name)
    tiny_tokenizer().save_pretrained(folder / name)
    for part, count in (("forget", 8), ("retain", 24)):
        rows = [{"question": f"{part[0]}{row}", "answer": f"{part} {row} " * 200} for row in range(count)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"epochs": 1, "learning_rate": 1e-4, **changes.pop("train", {})}
    return {
        "model": {"name": str(folder / name), "dtype": "float32"},
        "data": {part: {"path": str(folder / f"{part}.jsonl")} for part in ("forget", "retain")},
        "encoding": {"max_length": tokens, "truncate": True},
        "method": {"name": "npo"},
        "train": train,
        "stop": {"forget_target": None, "utility_floor": 0.0, "rows": 1, "every": 99},
        "output_dir": str(folder / f"{name}-run"),
        **changes,
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, int]]:
    """Return the recipe and the measured memory of a whole run, in bytes, for each case; one subprocess runs them all."""
    recipes, paths = {}, []
    for number, (case, changes) in enumerate(CASES.items()):
        folder = tmp_path_factory.mktemp(f"measured{number}")
        recipes[case] = recipe_of(folder, "model", 224, 112, **changes)
        for name, recipe in (("tiny", recipe_of(folder, "tiny", 32, 48, **changes)), ("model", recipes[case])):
            paths.append(folder / f"{name}.json")
            paths[-1].write_text(json.dumps(recipe))
    done = subprocess.run(
        [sys.executable, "measured_run.py", *map(str, paths)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(llm_forget.__path__[0]).parent),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
        cwd=HELPERS,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {case: (recipes[case], size) for case, size in zip(CASES, json.loads(done.stdout), strict=True)}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_15_percent_of_a_whole_run(case: str, measured: dict[str, tuple[Any, int]]) -> None:
    """Measure resident memory from loading to the written run folder, minus that after a tiny run."""
    values, taken = measured[case]
    planned = plan(build(UnlearnRecipe, values, "test"), on_card=False)
    print(f"{case}: planned {planned.total / 1e6:.0f} MB, measured {taken / 1e6:.0f} MB")
    assert taken > 150e6, "large enough to mean something"
    assert planned.total == pytest.approx(taken, rel=0.15)


@pytest.mark.slow
def test_8b_in_4_bits_on_a_card_of_40_gb() -> None:
    """By hand: 224 linear layers with 6.98e9 weights at 0.5625 bytes; embedding and head, 525e6 each, in bf16.

    Rank 16 on q, k, v, o and three MLP layers: 16 · 32 · (8192 + 2 · 5120 + 8192 + 3 · 18432) = 41.9e6 weights in fp32.
    """
    recipe = load_recipe(UnlearnRecipe, "recipes/qlora/npo_8b_40gb.yaml")
    found = plan(recipe, on_card=True, model_config=LLAMA_8B)
    assert found.weights == pytest.approx(6.979e9 * 0.5625 + 2 * 128256 * 4096 * 2, rel=0.01)
    assert found.adapter == found.gradients == found.best_state == 4 * 41_943_040
    assert found.optimizer == pytest.approx(2.1 * 41_943_040)
    assert found.reference == 0
    assert (found.rows, found.tokens) == (8, 512)
    assert found.needed < 20 * GB, "well under"
    assert found.needed > found.total > found.weights


@pytest.mark.slow
def test_checkpointing_quantisation_and_width_change_the_plan_in_the_right_direction() -> None:
    small = LlamaConfig(
        vocab_size=2000, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4
    )

    def total(**changes: Any) -> float:
        values: dict[str, Any] = {
            "model": {"name": "a/b"},
            "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
            "method": {"name": "npo"},
            "output_dir": "o",
        }
        recipe = build(UnlearnRecipe, {**values, **changes}, "test")
        return plan(recipe, on_card=True, tokens=64, model_config=small).total

    usual, kl = total(), total(retain={"name": "kl"})
    checkpointed = total(train={"gradient_checkpointing": True})
    assert checkpointed < 0.7 * usual
    assert checkpointed < total(train={"gradient_checkpointing": "selective"}) < usual
    assert total(train={"batch_size": 16}) > 1.3 * usual
    assert total(adapter={"top_share": 0.5}) < 0.85 * usual
    assert kl > 1.05 * usual
    assert total(adapter=None, retain={"name": "kl"}) > kl + 8 * 128 * 2000
    assert total(model={"name": "a/b", "quantization": "nf4"}) < usual


@pytest.mark.slow
def test_logits_are_planned_as_on_a_gpu() -> None:
    """On a GPU all 16 · 191 positions pass the head at once; on a CPU with a frozen head, in chunks of 32 MB.

    Four tensors of (positions, vocabulary) in fp32 are alive at once on the GPU: the logits, the two steps of a softmax and its
    gradient. By hand 16 · 191 · 16384 · 4 = 200 MB each. A memory trace of a GPU had four at the peak, and five with KL on 8
    rows.
    """
    wide = LlamaConfig(
        vocab_size=16384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    one = 16 * 191 * 16384 * 4

    def logits(on_card: bool, retain: str) -> float:
        values: dict[str, Any] = {
            "model": {"name": "a/b"},
            "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
            "method": {"name": "npo"},
            "retain": {"name": retain},
            "train": {"batch_size": 8},
            "output_dir": "o",
        }
        return plan(build(UnlearnRecipe, values, "test"), on_card=on_card, tokens=192, model_config=wide).logits

    assert logits(True, "nll") == pytest.approx(4 * one, rel=0.01)
    assert logits(False, "nll") < one
    assert logits(True, "kl") == pytest.approx(5 * one, rel=0.01)


@pytest.mark.slow
def test_states_below_the_trained_blocks_are_planned_up_to_a_quarter_of_the_weights() -> None:
    small = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )

    def planned(share: float, rows: int | None, *, on_card: bool = False) -> Plan:
        values: dict[str, Any] = {
            "model": {"name": "a/b", "dtype": "float32"},
            "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
            "method": {"name": "npo"},
            "adapter": {"rank": 4, "alpha": 4, "top_share": share},
            "train": {"batch_size": 2},
            "output_dir": "o",
        }
        recipe = build(UnlearnRecipe, values, "test")
        return plan(recipe, on_card=on_card, tokens=16, model_config=small, data_rows=rows)

    few, unknown, card = planned(0.5, 6), planned(0.5, None), planned(0.5, 6, on_card=True)
    assert few.lower_states == 6 * 16 * 64 * 4, "fp32 states of every token of every row"
    assert unknown.lower_states == unknown.weights / 4
    assert unknown.total - few.total == pytest.approx(unknown.lower_states - few.lower_states)
    assert card.lower_states == few.lower_states
    assert replace(card, lower_states=0.0).total == card.total, "they are in CPU memory"


@pytest.mark.slow
def test_methods_that_train_some_blocks_are_planned_with_these_blocks() -> None:
    """RMU at block 3 of 5 trains blocks 1 to 3, each with 4 · 128² (attention) + 3 · 128 · 256 (MLP) + 2 · 128 (norms)."""
    small = LlamaConfig(
        vocab_size=2000, hidden_size=128, intermediate_size=256, num_hidden_layers=5, num_attention_heads=4
    )

    def planned(**changes: Any) -> Plan:
        values: dict[str, Any] = {
            "model": {"name": "a/b"},
            "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
            "method": {"name": "rmu", "layer": 3},
            "output_dir": "o",
            **changes,
        }
        return plan(build(UnlearnRecipe, values, "test"), on_card=True, tokens=64, model_config=small)

    full = planned(adapter=None)
    assert full.gradients == full.best_state == 4 * 3 * (4 * 128**2 + 3 * 128 * 256 + 2 * 128)
    assert full.reference == full.weights, "it looks at the reference's hidden states every step"
    everywhere = planned(method={"name": "npo"})
    some = planned()
    assert some.adapter == everywhere.adapter * 3 / 5
    assert some.activations < everywhere.activations
    plain, based = (planned(method={"name": "adapter_subtraction", "start": start}) for start in ("target", "base"))
    assert plain.reference == 0
    assert based.reference == based.weights, "the base is held while the adapter trains on it"
    with pytest.raises(RecipeError, match="layer is 9; give a block of this model, from 0 to 4"):
        planned(method={"name": "rmu", "layer": 9})


def test_alternatives_count_as_rows() -> None:
    values: dict[str, Any] = {
        "model": {"name": "a/b"},
        "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
        "method": {"name": "dpo"},
        "train": {"batch_size": 4},
        "output_dir": "o",
    }
    recipe = build(UnlearnRecipe, values, "test")
    small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    assert plan(recipe, on_card=True, tokens=32, model_config=small).rows == 12


@pytest.mark.slow
def test_a_model_without_linear_modules_is_planned() -> None:
    """GPT-2's layers are Conv1D; 3 of its 6 blocks are extrapolated, and adapters on half of the blocks need less."""
    values: dict[str, Any] = {
        "model": {"name": "a/b"},
        "data": {"forget": {"path": "f"}},
        "method": {"name": "grad_ascent"},
        "output_dir": "o",
    }
    gpt2 = GPT2Config(vocab_size=500, n_embd=64, n_layer=6, n_head=4, n_positions=64)
    found = [
        plan(
            build(UnlearnRecipe, {**values, "adapter": {"top_share": share}}, "test"),
            on_card=True,
            tokens=32,
            model_config=gpt2,
        )
        for share in (1.0, 0.5)
    ]
    assert found[1].adapter == 0.5 * found[0].adapter
    assert 0.3 < found[1].activations / found[0].activations < 0.8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_mixture_of_experts_is_planned(kind: str, dtype: str) -> None:
    values = {
        "model": {"name": "a/b", "dtype": dtype},
        "data": {"forget": {"path": "f"}},
        "method": {"name": "grad_ascent"},
        "output_dir": "o",
    }
    config = tiny_config(kind, tiny_tokenizer())
    for adapter in (None, {"rank": 2, "alpha": 2}):
        recipe = build(UnlearnRecipe, {**values, "adapter": adapter}, "test")
        found = plan(recipe, on_card=False, tokens=32, model_config=config)
        weights = sum(value.numel() for value in AutoModelForCausalLM.from_config(config).parameters())
        assert found.weights == pytest.approx(weights * (4 if adapter is None or dtype == "float32" else 2), rel=0.02)
        assert found.activations > 0


@pytest.mark.slow
def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    from dataclasses import replace

    recipe = load_recipe(UnlearnRecipe, "recipes/demo/npo.yaml")
    small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    how: dict[str, Any] = {"on_card": False, "tokens": 32, "model_config": small}
    memory = 130e6
    size = largest_batch(recipe, memory, **how)
    assert size > 2
    needed = [plan(replace(recipe, train=replace(recipe.train, batch_size=n)), **how).needed for n in (size, size + 1)]
    assert needed[0] <= memory < needed[1]
    assert largest_batch(recipe, 1e6, **how) == 0


@pytest.mark.parametrize(("text", "size"), [("40GB", 40e9), ("24 GiB", 24 * 2**30), ("512mb", 512e6), ("1.5T", 1.5e12)])
def test_sizes(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "40", "GB", "-1GB", "0GB", "40GBit"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is not a size; give for example 40GB"):
        parse_memory(text)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    from llm_forget.cli.main import app

    values = recipe_of(tmp_path, "model", 32, 32)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    done = CliRunner().invoke(app, ["plan", "--config", str(path), "--memory", "2GB", "--train.batch_size", "2"])
    assert done.exit_code == 0, done.output
    assert "micro-batch of 4 rows, 32 tokens each" in done.output
    assert "largest train.batch_size:" in done.output
    found = json.loads(CliRunner().invoke(app, ["plan", "--config", str(path), "--json"]).stdout)
    assert found["needed"] > found["weights"] > 0
    assert found["largest_batch"] is None, "no card was named"
    named = CliRunner().invoke(app, ["plan", "--config", str(path), "--gpu", "h100"])
    assert "h100: largest train.batch_size: 1024 or more" in named.output
    assert "s at the peak of H100, about" in named.output
    both = CliRunner().invoke(app, ["plan", "--config", str(path), "--gpu", "h100", "--memory", "2GB"])
    assert "leave out --memory" in str(both.exception)
    refused = CliRunner().invoke(app, ["plan", "--config", str(path), "--model.name", str(tmp_path / "gone")])
    assert isinstance(refused.exception, RecipeError)
