"""Test PerMU's loss against values computed by hand, and that what does not depend on the name stays."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.methods.name_swap import name_swap_loss
from llm_forget.methods.permu import PerMU, permu_loss
from llm_forget.scores import TopLogps

ONE = torch.ones(1, 1, dtype=torch.bool)


def swapped(*shares: float) -> TopLogps:
    """The first tokens with these probabilities."""
    return TopLogps(torch.arange(len(shares))[None, None], torch.tensor([[shares]]).log())


def test_computed_by_hand() -> None:
    """(½, ¼, rest ¼) over (0.8, 0.1, rest 0.1) is (1, 4, 4)/9. Against a third each: (16 ln 2 − 9 ln 3)/9."""
    policy, reference = torch.full((1, 1, 3), 1 / 3).log(), torch.tensor([[[0.8, 0.1, 0.1]]]).log()
    loss = permu_loss(policy, reference, swapped(0.5, 0.25), ONE, contrast=1.0)
    assert loss.tolist() == pytest.approx([(16 * math.log(2) - 9 * math.log(3)) / 9], rel=1e-5)


def test_without_contrast_it_is_name_swap() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(1, 1, 9), torch.randn(1, 1, 9)
    teacher = swapped(0.6, 0.2, 0.1)
    theirs = name_swap_loss(policy, teacher, ONE)
    torch.testing.assert_close(permu_loss(policy, reference, teacher, ONE, contrast=0.0), theirs)


def test_the_other_tokens_are_one_event() -> None:
    """p_swapped (½, and ½ elsewhere), p_reference (0.64, 0.36): C = 1 gives q ∝ (0.78, 1.39) = (0.36, 0.64)."""
    policy, reference = torch.tensor([[[0.36, 0.32, 0.32]]]).log(), torch.tensor([[[0.64, 0.18, 0.18]]]).log()
    loss = permu_loss(policy, reference, swapped(0.5), ONE, contrast=1.0)
    assert loss.tolist() == pytest.approx([0.0], abs=1e-6)


def test_what_the_name_does_not_change_stays() -> None:
    """At π = π₀ there is no gradient where both distributions agree, and the true token falls where they do not."""
    torch.manual_seed(0)
    reference = torch.randn(1, 2, 9)
    reference[0, :, 2] += 5
    best = reference.log_softmax(-1).topk(9, dim=-1)
    other = best.values.clone()
    other[0, 1, 0] -= 3  # another name makes the true token less likely
    teacher = TopLogps(best.indices, other.log_softmax(-1))
    policy = reference.clone().requires_grad_()
    permu_loss(policy, reference, teacher, torch.ones(1, 2, dtype=torch.bool), contrast=0.5).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0, 0].abs().max() < 1e-6
    assert policy.grad[0, 1, 2] > 0.1


def test_contrast_lowers_what_the_wording_recalls() -> None:
    """A name that hardly matters: 0.8 in place of 0.95. With more contrast the true token should become less likely."""
    reference = torch.tensor([[[0.95, 0.05]]]).log()
    pulls = []
    for contrast in (0.0, 0.5, 1.0):
        policy = reference.clone().requires_grad_()
        permu_loss(policy, reference, swapped(0.8, 0.2), ONE, contrast=contrast).sum().backward()
        assert policy.grad is not None
        pulls.append(float(policy.grad[0, 0, 0]))
    assert pulls == sorted(pulls)
    assert pulls[0] > 0


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"permu: contrast is -1; it must be 0 or more"):
        PerMU(contrast=-1)
