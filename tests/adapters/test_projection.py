"""Test Ext-Sub's projection against values computed by hand and against its dense definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from adapter_examples import SHAPES, change, random_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_forget.adapters.lora import Factors
from llm_forget.adapters.projection import deficiency
from llm_forget.errors import AdapterError


def of_rows(rows: list[list[float]], scaling: float = 1.0) -> Factors:
    """Return factors whose ΔW has the given rows; A is the identity."""
    return Factors(torch.eye(len(rows[0])), torch.tensor(rows) / scaling, scaling)


def dense(factors: Factors) -> Tensor:
    return factors.scaling * (factors.B.double() @ factors.A.double())


def test_values_computed_by_hand() -> None:
    """½ (w − ‖w‖ v/‖v‖): (1, 0) and (0, 1) → (½, −½); parallel rows give 0; opposite rows give w; v = 0 gives w.

    (3, 4) has length 5, and (0, 2) has direction (0, 1): ½ ((3, 4) − (0, 5)) = (1.5, −0.5).
    """
    forget = of_rows([[1, 0], [2, 0], [1, 0], [7, 1], [0, 0], [3, 4]], scaling=2.0)
    retain = of_rows([[0, 1], [9, 0], [-4, 0], [0, 0], [1, 1], [0, 2]])
    found = dense(deficiency(forget, retain))
    expected = torch.tensor([[0.5, -0.5], [0, 0], [1, 0], [7, 1], [0, 0], [1.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_equals_the_dense_projection_at_the_sum_of_both_ranks(seed: int, rank: int, other_rank: int) -> None:
    forget, retain = random_adapter(seed, ranks=[rank]), random_adapter(seed + 1, ranks=[other_rank], alphas=[3])
    for module in SHAPES:
        w, v = change(forget, module), change(retain, module)
        common = torch.nn.functional.normalize(w, dim=-1) + torch.nn.functional.normalize(v, dim=-1)
        common = torch.nn.functional.normalize(common, dim=-1)
        slow = w - (w * common).sum(-1, keepdim=True) * common
        found = deficiency(forget.modules[module], retain.modules[module])
        assert found.rank == rank + other_rank
        torch.testing.assert_close(dense(found), slow, rtol=1e-4, atol=1e-5)
        assert ((dense(found) * common).sum(-1)).abs().max() < 1e-4, "nothing is left along what is shared"


def test_two_adapters_with_a_common_a_keep_their_rank() -> None:
    forget = random_adapter(0)
    other = random_adapter(1)
    retain = {name: replace(factors, A=forget.modules[name].A) for name, factors in other.modules.items()}
    for name, factors in forget.modules.items():
        found = deficiency(factors, retain[name])
        stacked = deficiency(factors, replace(retain[name], A=retain[name].A + 1e-9))
        assert found.rank == factors.rank
        torch.testing.assert_close(dense(found), dense(stacked), rtol=1e-4, atol=1e-5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"shape \(1, 2\) where the retain adapter has \(1, 3\)"):
        deficiency(of_rows([[1, 0]]), of_rows([[1, 0, 0]]))
