"""Test MASC against a value computed by hand, and its hinge."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.masc import MASC, masc_loss

ONE = torch.ones(1, 1, dtype=torch.bool)
FIRST = torch.zeros(1, 1, dtype=torch.long)


def test_computed_by_hand() -> None:
    """With z = (ln 3, 0, 9), K is the reference's best without y, the second token: m = ln 3, τ = 0, η = 1: ln 3 + 1."""
    policy = torch.tensor([[[math.log(3), 0.0, 9.0]]])
    reference = torch.tensor([[[7.0, 1.0, 0.0]]])
    loss = masc_loss(policy, reference, FIRST, ONE, top=1, beta=1.0, rho=0.5, eta=1.0)
    assert loss.tolist() == pytest.approx([math.log(3) + 1])


def test_no_pressure_below_the_bound_and_none_on_tokens_outside_the_candidates() -> None:
    """The margin −2 is below τ − η = −1. Above the bound, the third token, no candidate, gets no gradient."""
    for gap, pressed in ((-2.0, False), (0.5, True)):
        policy = torch.tensor([[[gap, 0.0, 4.0]]], requires_grad=True)
        reference = torch.tensor([[[0.0, 1.0, -5.0]]])
        masc_loss(policy, reference, FIRST, ONE, top=1, beta=1.0, rho=0.5, eta=1.0).sum().backward()
        assert policy.grad is not None
        assert bool(policy.grad.any()) == pressed
        assert policy.grad[0, 0, 2] == 0


@pytest.mark.parametrize("change", [{"rho": 1.0}, {"eta": 0.0}, {"top": 0}, {"weight": -1.0}])
def test_bad_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"masc: {next(iter(change))} is"):
        MASC(**change)  # type: ignore[arg-type]
