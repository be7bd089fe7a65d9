"""Test gradient difference: gradient ascent on the forget rows, cross-entropy on the retain rows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.grad_ascent import GradAscent
from llm_forget.methods.grad_diff import GradDiff
from llm_forget.retain.nll import NLL
from llm_forget.scores import AnswerScores


@given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=6))
@settings(deadline=None)
def test_on_equal_sets_it_cancels(values: list[float]) -> None:
    """(1/n) Σ log p − (1/n) Σ log p = 0 in value and gradient: if both sets are equal, nothing changes."""
    logps = torch.tensor([values], requires_grad=True)
    mask = torch.ones(1, len(values), dtype=torch.bool)
    scores = AnswerScores(logps, mask, mask.long())
    forget, retain = GradDiff().forget_loss(scores), NLL().retain_loss(scores)
    (forget + retain).sum().backward()
    assert forget.tolist() == GradAscent().forget_loss(scores).tolist()
    assert float((forget + retain).detach()) == 0
    assert logps.grad.abs().max() == 0


def test_has_a_default_retain_term() -> None:
    assert (GradDiff.default_retain, GradDiff.bounded, GradDiff.towards) == ("nll", False, False)
