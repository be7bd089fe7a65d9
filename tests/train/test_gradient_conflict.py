"""The warning that forget and retain gradients cancel, by hand and in a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llm_forget.train.gradient_conflict import CancellationGuard, cancellation, nearest_to_the_loss


@pytest.mark.parametrize(
    ("first", "second", "cosine", "share"),
    [
        ((3.0, 4.0), (-3.0, -4.0), -1.0, 0.0),
        ((3.0, 4.0), (-6.0, -8.0), -1.0, 1 / 3),  # 5 and 10 the other way: 5 is left of 15
        ((1.0, 0.0), (0.0, 1.0), 0.0, 1 / math.sqrt(2)),
        ((3.0, 4.0), (3.0, 4.0), 1.0, 1.0),
        ((3.0, 4.0), (0.0, 0.0), 1.0, 1.0),
    ],
)
def test_by_hand(first: tuple[float, float], second: tuple[float, float], cosine: float, share: float) -> None:
    """The gradient of w · v is v, spread here over two parameters."""
    w = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    losses = [(w[0] * v[0] + w[1] * v[1]).sum() for v in (first, second)]
    assert cancellation(*losses, w) == pytest.approx((cosine, share), abs=1e-6)
    losses[0].backward()  # the graph is still there
    assert float(w[0].grad) == first[0]


def test_warns_once_and_looks_at_the_first_steps_only() -> None:
    told: list[str] = []
    guard, model = CancellationGuard(told.append), nn.Linear(2, 2)
    looked = []
    for step in (1, 1, 2, 3, 4):
        loss = model(torch.ones(1, 2)).sum()
        looked.append(guard.look(model, loss, -0.95 * loss, step))
    assert [bool(found) for found in looked] == [True, False, True, True, False]
    assert float(looked[0]["gradient_cosine"]) == pytest.approx(-1)
    assert len(told) == 1
    assert "nearly cancel at step 1: cosine -1.00, and what is left is 0.03" in told[0]
    assert "retain.weight" in told[0]


def test_says_nothing_when_they_do_not_cancel_or_there_is_no_graph() -> None:
    told: list[str] = []
    guard, model = CancellationGuard(told.append), nn.Linear(2, 2)
    loss = model(torch.ones(1, 2)).sum()
    guard.look(model, loss, -0.5 * loss, 1)
    assert guard.look(model, loss.detach(), loss.detach(), 2) == {}
    assert told == []


def test_frozen_weights_and_vectors_are_not_looked_at() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    model[2].requires_grad_(False)
    assert [tuple(value.shape) for value in nearest_to_the_loss(model, 2)] == [(3, 2), (4, 3)]
