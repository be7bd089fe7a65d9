"""Test PDU's flattening loss: values computed by hand, zero only for a uniform distribution, invariant to a shift."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.methods.pdu import PDU, logit_margin_loss
from llm_forget.scores import AnswerScores

MASK = torch.tensor([[True, True], [True, False]])


def test_computed_by_hand() -> None:
    """(3, 0, 0): (3 − 1)² = 4; (0, 6, 0): (6 − 2)² = 16; the mean is 10. The second row has one token: 4."""
    logits = torch.tensor([[[3.0, 0, 0], [0, 6.0, 0]], [[3.0, 0, 0], [9.0, 0, 0]]])
    assert logit_margin_loss(logits, MASK).tolist() == [10.0, 4.0]


@given(st.integers(0, 2**16), st.floats(-30, 30))
@settings(deadline=None, max_examples=30)
def test_shift_invariant_and_zero_only_if_uniform(seed: int, shift: float) -> None:
    logits = torch.randn(2, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    losses = logit_margin_loss(logits, MASK)
    assert losses.min() > 0
    torch.testing.assert_close(logit_margin_loss(logits + shift, MASK), losses)
    assert logit_margin_loss(torch.full((2, 2, 5), shift), MASK).abs().max() < 1e-9


def test_missing_logits_are_an_error() -> None:
    with pytest.raises(ValueError, match="pdu needs the policy's logits"):
        PDU().forget_loss(AnswerScores(torch.zeros(2, 2), MASK, MASK.long()))
