"""Test RMU: the distance computed by hand, the control vector, and the trained blocks."""

from __future__ import annotations

import pytest
import torch

from llm_forget.methods.rmu import RMU, control_vector, rmu_loss
from llm_forget.model.logprobs import hidden_layer
from llm_forget.testing import tiny_model, tiny_tokenizer

MASK = torch.tensor([[True, True], [True, False]])


def test_computed_by_hand() -> None:
    """H = (3, 0) and (0, 4) against c·u = (0, 4): 9 + 16 = 25 and 0, mean 12.5; with the second token removed or masked, 25."""
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[3.0, 0.0], [99.0, 99.0]]])
    assert rmu_loss(hidden, torch.tensor([0.0, 4.0]), MASK).tolist() == [12.5, 25.0]


def test_gradient_points_to_the_control_vector_and_vanishes_there() -> None:
    """The gradient is 2 (h − c·u) per token."""
    control = control_vector(5, coefficient=2.0, seed=0)
    hidden = torch.randn(1, 1, 5, requires_grad=True)
    rmu_loss(hidden, control, torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    torch.testing.assert_close(hidden.grad, 2 * (hidden.detach() - control))
    assert rmu_loss(control.expand(1, 1, 5), control, torch.ones(1, 1, dtype=torch.bool)).item() == 0


def test_the_control_vector_has_its_norm_and_depends_on_the_seed() -> None:
    first, again, other = (control_vector(64, coefficient=6.5, seed=seed) for seed in (1, 1, 2))
    assert first.norm().item() == pytest.approx(6.5)
    assert first.min() >= 0, "from the unit cube, as in the paper"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_trains_the_block_and_the_two_before_it() -> None:
    assert RMU().trained_layers(7) == [5, 6, 7]
    assert RMU().trained_layers(1) == [0, 1]
    assert hidden_layer(tiny_model(tiny_tokenizer(), hidden=32, layers=10), None) == 2  # 7/32 of 10
    with pytest.raises(ValueError, match=r"layer is 9; give a block of this model, from 0 to 1"):
        hidden_layer(tiny_model(tiny_tokenizer(), hidden=32), 9)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="layer is -1"):
        RMU(layer=-1)
    with pytest.raises(ValueError, match="coefficient is 0"):
        RMU(coefficient=0)
