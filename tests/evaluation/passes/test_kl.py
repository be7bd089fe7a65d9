"""Test the KL to the target: by hand, against full logits, and with the adapter disabled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evaluation_examples import random_rows, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.evaluation.aggregates.text_kl import text_kl
from llm_forget.evaluation.passes import kl
from llm_forget.evaluation.passes.kl import has_adapter, token_kl, vocabulary_kl

nan = math.nan


def naive(model, target, rows: list[Encoded]) -> np.ndarray:
    """Compute each row alone, without padding, from all logits in float64."""
    found = []
    for row in rows:
        with torch.no_grad():
            own, other = (one.eval()(torch.tensor([row.input_ids])).logits[0].double() for one in (model, target))
        for place in range(max(row.prompt_length, 1), len(row.input_ids)):
            p, q = other[place - 1].log_softmax(-1), own[place - 1].log_softmax(-1)
            found.append(float((p.exp() * (p - q)).sum()))
    return np.array(found)


def test_worked_value() -> None:
    """Target (¾, ¼), model (½, ½): ¾ ln 1.5 + ¼ ln ½ = 0.130812; the reverse KL is 0.143841."""
    target, model = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(vocabulary_kl(target, model)) == pytest.approx(0.130812, abs=1e-5)
    assert float(vocabulary_kl(model, target)) == pytest.approx(0.143841, abs=1e-5)
    forbidden = torch.tensor([[0.0, -torch.inf]])
    assert float(vocabulary_kl(forbidden, forbidden)) == 0
    assert float(vocabulary_kl(forbidden, torch.zeros(1, 2))) == pytest.approx(math.log(2), abs=1e-6)


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=6), st.floats(-5, 5))
def test_never_negative_and_invariant_to_shifts_and_order(pairs: list[tuple[float, float]], shift: float) -> None:
    target, model = (torch.tensor([column]) for column in zip(*pairs, strict=True))
    found = float(vocabulary_kl(target, model))
    assert found >= 0
    assert float(vocabulary_kl(target, target + shift)) == pytest.approx(0, abs=1e-5)
    assert float(vocabulary_kl(target.flip(-1), model.flip(-1) + shift)) == pytest.approx(found, abs=1e-4)


def test_equals_the_naive_computation() -> None:
    model, target = tiny_model(0), tiny_model(1)
    rows = random_rows(12, model.config.vocab_size)
    found = token_kl(model, target, rows, pad_token_id=0, batch_tokens=64)
    np.testing.assert_allclose(found, naive(model, target, rows), atol=1e-4)
    assert found.min() > 0.1


def test_batches_chunks_padding_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = tiny_model(0), tiny_model(1)
    rows = random_rows(9, model.config.vocab_size, seed=2)
    base = token_kl(model, target, rows, pad_token_id=0)
    monkeypatch.setattr(kl, "_CHUNK", 3)
    monkeypatch.setattr(kl, "_POSITIONS", 5)
    np.testing.assert_allclose(token_kl(model, target, rows, pad_token_id=7), base, atol=1e-4)
    lengths = [len(row.input_ids) - row.prompt_length for row in rows]
    parts = np.split(base, np.cumsum(lengths)[:-1])
    backwards = token_kl(model, target, rows[::-1], pad_token_id=0, batch_tokens=40)
    np.testing.assert_allclose(backwards, np.concatenate(parts[::-1]), atol=1e-4)


def test_no_batch_holds_more_positions_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single row with more positions is the only exception."""
    seen: list[int] = []
    chunked = kl._chunked
    monkeypatch.setattr(kl, "_chunked", lambda expected, own: (seen.append(len(own)), chunked(expected, own))[1])
    monkeypatch.setattr(kl, "_POSITIONS", 10)
    model = tiny_model()
    rows = [*(Encoded(str(index), (1, 2, 3, 4, 5), 1) for index in range(5)), Encoded("long", tuple(range(15)), 1)]
    token_kl(model, model, rows, pad_token_id=0)
    assert sorted(seen) == [4, 8, 8, 14]


def test_the_target_of_an_adapter_is_its_base() -> None:
    model = tiny_model()
    rows = random_rows(4, model.config.vocab_size)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert has_adapter(wrapped)
    assert not has_adapter(tiny_model())
    assert token_kl(wrapped, None, rows, pad_token_id=0).max() == pytest.approx(0, abs=1e-5)  # B is still zero
    for name, weight in wrapped.named_parameters():
        weight.requires_grad_(False)
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    wrapped.train()
    found = token_kl(wrapped, None, rows, pad_token_id=0)
    np.testing.assert_allclose(found, naive(wrapped.eval(), tiny_model(), rows), atol=1e-4)
    assert found.max() > 0.01
    assert not any(weight.requires_grad for weight in wrapped.parameters())  # peft enables them automatically


def test_modes_are_restored() -> None:
    model, target = tiny_model(0).train(), tiny_model(1).train()
    token_kl(model, target, random_rows(2, model.config.vocab_size), pad_token_id=0)
    assert model.training
    assert target.training


def test_incompatible_models_are_refused() -> None:
    model = tiny_model()
    rows = random_rows(2, model.config.vocab_size)
    with pytest.raises(UserError, match="needs a target"):
        token_kl(model, None, rows, pad_token_id=0)
    with pytest.raises(UserError, match="vocabulary of"):
        token_kl(model, tiny_model(vocab=model.config.vocab_size + 3), rows, pad_token_id=0)
    assert len(token_kl(model, model, [], pad_token_id=0)) == 0
    with torch.no_grad():
        model.lm_head.weight.fill_(nan)
    assert np.isnan(token_kl(model, tiny_model(), rows, pad_token_id=0)).all()


def test_a_text_is_averaged_over_tokens_and_not_over_windows() -> None:
    """Windows (1) and (3, 3, 3) give 10/4; a mean over windows would be 2. A window with a NaN is excluded and counted."""
    found = text_kl([1.0, 3.0, 3.0, 3.0, nan, 1.0], np.array([0, 1, 4, 6, 6]))
    assert found.value == 2.5
    assert (found.n, found.windows, found.n_nan) == (4, 2, 2)
    assert 0 <= found.low < 2.5 < found.high
    assert math.isnan(text_kl([nan], np.array([0, 1])).value)
