"""Test retain terms against values computed by hand, and the contract of every file in `llm_forget/retain`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.retain import RetainTerm
from llm_forget.retain.activation import Activation, activation_loss
from llm_forget.retain.jsd import jsd_loss
from llm_forget.retain.kl import KL, kl_loss
from llm_forget.retain.nll import NLL, nll_loss
from llm_forget.scores import AnswerScores, kl_divergence
from llm_forget.utils import plugins

MASK = torch.tensor([[True, True], [True, False]])
every_term = pytest.mark.parametrize("name", plugins.names_in("llm_forget.retain"))


def scores(seed: int = 0) -> AnswerScores:
    torch.manual_seed(seed)
    logits, reference = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    tokens = torch.zeros(2, 2, dtype=torch.long)
    logps = logits.log_softmax(-1)[..., 0] * MASK
    inside, theirs = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    return AnswerScores(
        logps, MASK, tokens, logits=logits, reference_logits=reference, hidden=inside, reference_hidden=theirs
    )


def test_nll_computed_by_hand() -> None:
    """Tokens of probability ½ and ⅛: 2 ln 2. One token of ¼: ln 4, for any masked value."""
    logps = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()
    assert nll_loss(logps, MASK).tolist() == pytest.approx([2 * math.log(2), math.log(4)])


def test_kl_computed_by_hand() -> None:
    """π₀ = (½, ½), π = (¾, ¼): ½ ln(2/3) + ½ ln 2 = ½ ln(4/3) = 0.1438; the reverse KL would be 0.1308.

    The first row's second token is equal (0), so the mean is half of that; the second row's second token is masked.
    """
    even, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    policy = torch.stack([torch.stack([other, even]), torch.stack([other, other])])
    reference = even.expand(2, 2, 2)
    half = 0.5 * math.log(4 / 3)
    assert kl_loss(policy, reference, MASK).tolist() == pytest.approx([half / 2, half])


@given(st.integers(0, 2**16), st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_kl_is_zero_only_at_equality_and_invariant_to_shifts(seed: int, shift: float) -> None:
    both = scores(seed)
    assert both.logits is not None
    assert both.reference_logits is not None
    assert kl_loss(both.logits, both.logits + shift, MASK).abs().max() < 1e-5
    assert kl_loss(both.logits, both.reference_logits, MASK).min() > 1e-4
    probabilities = both.reference_logits.softmax(-1)
    slow = (probabilities * (probabilities.log() - both.logits.softmax(-1).log())).sum(-1)
    torch.testing.assert_close(kl_divergence(both.reference_logits, both.logits), slow, rtol=1e-4, atol=1e-6)


def test_kl_has_no_gradient_at_equality_and_none_for_the_reference() -> None:
    logits = torch.randn(1, 2, 5).requires_grad_()
    same = logits.detach().clone().requires_grad_()
    kl_loss(logits, same, MASK[:1]).sum().backward()
    assert same.grad is None
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_activation_computed_by_hand() -> None:
    """(1, 2) against (0, 0) gives 5, equal states 0: mean 2.5, and 5 where the second token is masked."""
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 3.0]], [[1.0, 2.0], [9.0, 9.0]]])
    reference = torch.tensor([[[0.0, 0.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert activation_loss(hidden, reference, MASK).tolist() == [2.5, 5.0]
    with pytest.raises(ValueError, match="layer is -2"):
        Activation(layer=-2)


def test_jsd_computed_by_hand() -> None:
    """(1, 0) against (0, 1): ½ ln 2 + ½ ln 2 = ln 2, the maximum; the first row's second token is equal."""
    here, there = torch.tensor([0.0, -80.0]), torch.tensor([-80.0, 0.0])
    policy = torch.stack([torch.stack([here, here]), torch.stack([here, there])])
    reference = torch.stack([torch.stack([there, here]), torch.stack([there, here])])
    assert jsd_loss(policy, reference, MASK).tolist() == pytest.approx([math.log(2) / 2, math.log(2)])


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_jsd_is_symmetric_and_below_half_of_kl(seed: int) -> None:
    """JSD ≤ ½ · ½ (KL(p‖q) + KL(q‖p)), by convexity of KL in its second argument."""
    both = scores(seed)
    assert both.logits is not None
    assert both.reference_logits is not None
    there, back = (
        jsd_loss(a, b, MASK) for a, b in ((both.logits, both.reference_logits), (both.reference_logits, both.logits))
    )
    torch.testing.assert_close(there, back)
    jeffreys = kl_loss(both.logits, both.reference_logits, MASK) + kl_loss(both.reference_logits, both.logits, MASK)
    assert (there <= jeffreys / 4 + 1e-6).all()
    assert jsd_loss(both.logits, both.logits, MASK).abs().max() < 1e-6


@every_term
def test_every_term_ignores_masked_tokens_and_gives_one_value_per_example(name: str) -> None:
    term = plugins.find_class("llm_forget.retain", name, "retain_loss")()
    assert isinstance(term, RetainTerm)
    clean, dirty = scores(), scores()
    assert dirty.logits is not None
    assert dirty.reference_logits is not None
    assert dirty.hidden is not None
    dirty.hidden[1, 1] = 99.0
    dirty.logits[1, 1] = 99.0
    dirty.reference_logits[1, 1] = torch.arange(5.0)
    losses = term.retain_loss(clean)
    assert losses.shape == (2,)
    assert losses.tolist() == term.retain_loss(dirty).tolist()
    nothing = AnswerScores(**{**vars(clean), "mask": torch.zeros_like(MASK), "token_logps": torch.zeros(2, 2)})
    assert term.retain_loss(nothing).tolist() == [0.0, 0.0]


@every_term
def test_every_term_works_with_its_needs_and_names_missing_tensors(name: str) -> None:
    term = plugins.find_class("llm_forget.retain", name, "retain_loss")()
    full = vars(scores())
    given = {key: value for key, value in full.items() if getattr(term.needs, key, True)}
    assert term.retain_loss(AnswerScores(**given)).isfinite().all()
    for key in ("logits", "reference_logits", "hidden", "reference_hidden"):
        if getattr(term.needs, key):
            with pytest.raises(ValueError, match=name):
                term.retain_loss(AnswerScores(**{**given, key: None}))


def test_needs() -> None:
    assert not NLL().needs.logits
    assert KL.needs.logits
    assert KL.needs.reference_logits
