"""Test the loss of name swap against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.name_swap import name_swap_loss
from llm_forget.scores import TopLogps

ONE = torch.ones(1, 1, dtype=torch.bool)


def test_computed_by_hand() -> None:
    """Teacher (½, ½) on both tokens against (¾, ¼): ½ ln(2/3) + ½ ln 2 = ½ ln(4/3). The tokens may be in any order."""
    policy = torch.tensor([[[0.75, 0.25]]]).log()
    for tokens in ([0, 1], [1, 0]):
        teacher = TopLogps(torch.tensor([[tokens]]), torch.tensor([[[0.5, 0.5]]]).log())
        assert name_swap_loss(policy, teacher, ONE).tolist() == pytest.approx([0.5 * math.log(4 / 3)], rel=1e-4)


def test_no_gradient_at_the_teacher() -> None:
    policy = torch.tensor([[[2.0, 1.0, 0.0]]], requires_grad=True)
    best = policy.detach().log_softmax(-1).topk(2, dim=-1)
    name_swap_loss(policy, TopLogps(best.indices, best.values), ONE).sum().backward()
    assert policy.grad is not None
    assert policy.grad.abs().max() < 1e-5
