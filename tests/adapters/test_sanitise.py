"""Test the algebra of sanitising on cases computed by hand, and its two defining properties on random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.adapters.lora import Factors
from llm_forget.adapters.sanitise import filtered, leading_directions, without_directions
from llm_forget.errors import AdapterError


def factors(a: list[list[float]]) -> Factors:
    return Factors(torch.tensor(a), torch.ones(2, len(a)), 2.0)


def test_directions_by_hand() -> None:
    """diag(8, 1, 1): the first axis holds 0.8 of the energy; 0.85 needs a second one, and 0 none."""
    moment = torch.diag(torch.tensor([8.0, 1.0, 1.0]))
    assert [leading_directions(moment, energy).shape[1] for energy in (0.0, 0.5, 0.8, 0.85, 0.9, 0.95)] == [
        0,
        1,
        1,
        2,
        2,
        3,
    ]
    assert leading_directions(moment, 0.8).abs().flatten().tolist() == pytest.approx([1, 0, 0])
    assert leading_directions(torch.zeros(3, 3), 0.9).shape == (3, 0), "no inputs, no directions"


def test_projection_and_filter_by_hand() -> None:
    """A = (1, 2), U = (1, 0)ᵀ: (0, 2). A = (1, 1), C_f = I, C_r = diag(1, 0), μ = 1: (1 · 1/(1 + 1), 1 · 1/(1 + 0))."""
    projected = without_directions(factors([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]]))
    assert projected.A.tolist() == [[0.0, 2.0]]
    assert (projected.B.tolist(), projected.scaling) == ([[1.0], [1.0]], 2.0)
    both = [factors([[1.0, 1.0]]), factors([[2.0, 2.0], [0.0, 4.0]])]
    new = filtered(both, torch.eye(2), torch.diag(torch.tensor([1.0, 0.0])), 1.0, 1e-9)
    assert new[0].A[0].tolist() == pytest.approx([0.5, 1.0], abs=1e-4)
    assert new[1].A.flatten().tolist() == pytest.approx([1.0, 2.0, 0.0, 4.0], abs=1e-4)
    assert filtered(both, torch.eye(2), torch.eye(2), 0.0)[0].A[0].tolist() == pytest.approx([1, 1], abs=1e-4)


def test_layers_that_no_forget_row_or_no_row_reaches() -> None:
    """C_f = 0, C_r = diag(1, 0), μ = 1, ρ = 0.1 · ½: (0.05 / 1.05, 1). Without any row nothing changes; NaN is refused."""
    own, keep = factors([[1.0, 1.0]]), torch.diag(torch.tensor([1.0, 0.0]))
    assert filtered([own], torch.zeros(2, 2), keep, 1.0)[0].A[0].tolist() == pytest.approx([0.05 / 1.05, 1.0])
    assert filtered([own], torch.zeros(2, 2), torch.zeros(2, 2), 1.0) == [own]
    for forget, others in ((torch.full((2, 2), float("nan")), keep), (keep, torch.full((2, 2), float("nan")))):
        with pytest.raises(AdapterError, match="are not finite"):
            filtered([own], forget, others, 1.0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), strength=st.floats(0.1, 100))
def test_inputs_to_keep_see_nothing_and_no_other_filter_is_better(seed: int, strength: float) -> None:
    torch.manual_seed(seed)
    keep, forget = torch.randn(3, 8), torch.randn(20, 8)
    own = Factors(torch.randn(2, 8), torch.randn(4, 2), 1.0)
    clean = without_directions(own, leading_directions(keep.T @ keep, 0.999999))
    assert (clean.A @ keep.T).abs().max() < 1e-3
    assert torch.linalg.matrix_norm(clean.A) <= torch.linalg.matrix_norm(own.A) + 1e-6
    ridge = 0.1
    best = filtered([own], forget.T @ forget, keep.T @ keep, strength, ridge)[0].A
    pull = ridge * float(forget.square().sum()) / 8

    def cost(a: torch.Tensor) -> float:
        moved = ((a - own.A) @ forget.T).square().sum() + pull * (a - own.A).square().sum()
        return float(moved + strength * (a @ keep.T).square().sum())

    assert all(cost(best) <= cost(best + 0.05 * torch.randn(2, 8)) + 1e-3 for _ in range(5))
    assert cost(best) <= min(cost(own.A), cost(clean.A)) + 1e-3
