"""Plans of large models: recipes by size, shards, operations and GPUs, against arithmetic and torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.memory.gpus import gpu_of
from llm_forget.memory.operations import operations
from llm_forget.memory.plan import GB, Plan, plan
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.build import build, load_recipe

WIDE = {"1b": (2048, 8192, 16, 32), "8b": (4096, 14336, 32, 32), "70b": (8192, 28672, 80, 64)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "memory", "shards", "needed"),
    [("1b_one_gpu", 24, 1, 21.2), ("8b_eight_gpus", 80, 1, 55.3), ("70b_two_nodes", 80, 16, 22.4)],
)
def test_a_recipe_for_a_size_fits_and_says_what_it_needs(file: str, memory: int, shards: int, needed: float) -> None:
    """By hand, a forward pass takes 2 operations for each weight of a layer and token, and a pass back through it as many."""
    path = f"recipes/sizes/{file}.yaml"
    hidden, inner, depth, heads = WIDE[file.partition("_")[0]]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=depth == 16,
    )
    found = plan(load_recipe(UnlearnRecipe, path), on_card=True, model_config=config, shards=shards)
    assert found.needed / GB == pytest.approx(needed, rel=0.02)
    assert found.needed < memory * GB
    assert f"{needed} GB" in Path(path).read_text()
    block = 2 * hidden * hidden + 2 * hidden * hidden * 8 // heads + 3 * hidden * inner
    passes = 3 if shards > 1 else 2  # checkpointing computes each block twice
    by_hand = 2 * found.rows * found.tokens * (passes * depth * block + 2 * hidden * 128256)
    assert by_hand < found.operations < 1.1 * by_hand, "attention and adapters are the rest"


def test_operations_are_those_that_torch_counts() -> None:
    """A training step of a small model whose attention is made of matrix products, which torch counts as well."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model(tiny_tokenizer())
    model.set_attn_implementation("eager")
    counted = _Counted()
    with FlopCounterMode(display=False) as known, counted:
        model(torch.ones(2, 9, dtype=torch.long)).logits.sum().backward()
    assert counted.operations == known.get_total_flops() > 0


def test_operations_of_attention_by_hand() -> None:
    """4 queries and 6 keys of 8 numbers, 3 heads: two products of 3 · 4 · 8 · 6 pairs, and five of them backwards."""
    query = torch.ones(1, 3, 4, 8, requires_grad=True)
    key, value = torch.ones(1, 3, 6, 8), torch.ones(1, 3, 6, 8)
    counted = _Counted()
    with counted:
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
    assert counted.operations == 2 * 2 * 3 * 4 * 8 * 6
    with counted:
        out.sum().backward()
    assert counted.operations == (2 + 5) * 2 * 3 * 4 * 8 * 6


class _Counted(TorchDispatchMode):  # type: ignore[misc]
    operations = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += operations(func, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_shards_hold_their_part_and_gather_two_blocks() -> None:
    """The embedding and the head, 2 · 500 · 64 weights, the last norm and two blocks are whole; the rest is divided by four."""
    small = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    values: dict[str, Any] = {
        "model": {"name": "a/b"},
        "data": {"forget": {"path": "f"}, "retain": {"path": "r"}},
        "method": {"name": "npo"},
        "adapter": {"rank": 4, "alpha": 4},
        "output_dir": "o",
    }

    def planned(shards: int, **changes: Any) -> Plan:
        recipe = build(UnlearnRecipe, {**values, **changes}, "test")
        return plan(recipe, on_card=True, tokens=16, model_config=small, shards=shards)

    one, four = planned(1), planned(4)
    for part in ("weights", "adapter", "optimizer", "gradients"):
        assert getattr(four, part) == getattr(one, part) / 4 > 0
    block = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    added = one.adapter / 4  # bytes of each block's adapter in fp32
    assert four.gathered == 2 * (2 * 500 * 64 + 64) + 2 * (2 * block + added)
    assert (one.gathered, four.activations) == (0, one.activations)
    with pytest.raises(RecipeError, match="cannot be sharded; plan for one GPU"):
        planned(4, model={"name": "a/b", "quantization": "nf4"})
    with pytest.raises(RecipeError, match=r"natural.* cannot be sharded.*--method\.name npo"):
        planned(4, method={}, adapter={})


@pytest.mark.parametrize("name", ["A100 40GB", "a100-40gb", "a10040gb"])
def test_a_gpu_is_known_by_its_name(name: str) -> None:
    assert gpu_of(name).memory == 40e9


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match=r"--gpu A10G: unknown; known are L4, A10, .* give --memory SIZE"):
        gpu_of("A10G")
