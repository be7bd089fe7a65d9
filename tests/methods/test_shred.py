"""Test SHRED against values computed by hand: the choice of tokens, the target, and what stays."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.shred import Shred, shred_loss, surprising

ONE = torch.ones(1, 1, dtype=torch.bool)
FIRST = torch.zeros(1, 1, dtype=torch.long)


def test_the_least_likely_tokens_are_chosen() -> None:
    """Half of three tokens, rounded up, is two; the fourth is padding. An answer of one token is never skipped."""
    logps = torch.tensor([[-1.0, -3.0, -2.0, -9.0], [-5.0, -1.0, -2.0, -3.0], [-1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert surprising(logps, mask, share=0.5, skip=0)[0].tolist() == [False, True, True, False]
    assert surprising(logps, mask, share=0.5, skip=1)[1].tolist() == [False, False, True, True]
    assert surprising(logps, mask, share=0.5, skip=1)[2].tolist() == [True, False, False, False]


def test_computed_by_hand() -> None:
    """z₀ = (ln 3, 0) with y first and top 2: target (½, ½). Against π = (¾, ¼): ½ ln(2/3) + ½ ln 2 = ½ ln(4/3)."""
    reference, policy = torch.tensor([[[math.log(3), 0.0]]]), torch.tensor([[[0.75, 0.25]]]).log()
    loss = shred_loss(policy, reference, FIRST, ONE, share=1.0, skip=0, top=2)
    assert loss.tolist() == pytest.approx([0.5 * math.log(4 / 3)])


def test_other_positions_hold_the_reference() -> None:
    """At π = π₀ only the demoted position has a gradient, and it lowers the true token."""
    torch.manual_seed(0)
    reference = torch.randn(1, 4, 9)
    reference[..., 2] += 6
    reference[0, 3, 2] -= 3  # the least likely one
    policy = reference.clone().requires_grad_()
    mask, tokens = torch.ones(1, 4, dtype=torch.bool), torch.full((1, 4), 2)
    shred_loss(policy, reference, tokens, mask, share=0.25, skip=0, top=5).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0, :3].abs().max() < 1e-6
    assert policy.grad[0, 3, 2] > 0.01


@pytest.mark.parametrize("change", [{"share": 0.0}, {"share": 1.5}, {"skip": -1}, {"top": 1}])
def test_bad_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"shred: {next(iter(change))} is"):
        Shred(**change)  # type: ignore[arg-type]
