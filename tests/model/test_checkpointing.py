"""Test selective checkpointing: which results are kept, which are recomputed, and unsupported combinations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from architectures import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from llm_forget.config import TrainConfig
from llm_forget.errors import RecipeError
from llm_forget.model.checkpointing import check_checkpointing, checkpointing_arguments, keeps
from llm_forget.testing import tiny_tokenizer

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operation", "shapes", "kept"),
    [
        (aten.mm.default, [(9, 576), (576, 8)], True),
        (aten.mm.default, [(9, 128), (128, 576)], False),
        (aten.addmm.default, [(8,), (9, 576), (576, 8)], True),
        (aten.addmm.default, [(576,), (9, 16), (16, 576)], False),
        (aten.bmm.default, [(2, 9, 576), (2, 576, 9)], False),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, [(1, 2, 9, 64)] * 3, True),
        (aten.mul.Tensor, [(9, 576), (9, 576)], False),
    ],
)
def test_large_products_and_fused_attention_are_kept(operation: Any, shapes: Any, kept: bool) -> None:
    found = keeps(None, operation, *(torch.empty(shape) for shape in shapes))
    assert found == (CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE)


def test_a_model_without_recomputation_is_refused() -> None:
    for kind in ("llama", "mamba"):
        check_checkpointing(tiny(kind, tiny_tokenizer()), True)
    model = tiny("jetmoe", tiny_tokenizer())
    check_checkpointing(model, False)
    with pytest.raises(
        RecipeError, match=r"train\.gradient_checkpointing: JetMoeForCausalLM cannot recompute activations"
    ):
        check_checkpointing(model, "selective")


class Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "products", "activations"), [(False, 1, 1), (True, 2, 2), ("selective", 1, 2)])
def test_a_block_under_each_kind(kind: Any, products: int, activations: int) -> None:
    """For tanh(x W)², no checkpointing computes all once, full all twice, selective tanh twice and the product once.

    The gradient is 2 tanh(z) (1 - tanh(z)^2) W^T in all cases.
    """
    weight = torch.linspace(-0.1, 0.1, 200 * 3).view(200, 3)
    hidden = torch.linspace(-1, 1, 4 * 200).view(4, 200).requires_grad_()

    def block(value: torch.Tensor) -> torch.Tensor:
        return torch.mm(value, weight).tanh().square()

    arguments = checkpointing_arguments(kind)
    with Counts() as counts:
        out = block(hidden) if arguments is None else checkpoint(block, hidden, **arguments)
        before = counts.seen[aten.mm.default]
        (gradient,) = torch.autograd.grad(out.sum(), hidden)
    backward = 1  # the gradient needs one more product
    assert before == 1
    assert counts.seen[aten.mm.default] == products + backward
    assert counts.seen[aten.tanh.default] == activations
    with torch.no_grad():
        z = hidden @ weight
        torch.testing.assert_close(gradient, (2 * z.tanh() * (1 - z.tanh() ** 2)) @ weight.T)


def test_selective_and_compile_are_refused_together() -> None:
    with pytest.raises(ValueError, match="compile to false"):
        TrainConfig(gradient_checkpointing="selective", compile=True)
