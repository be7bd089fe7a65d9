"""Test gradient norms against autograd, with and without an adapter, and with tied weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_examples import Rank, random_rows, tiny_model
from peft import LoraConfig, get_peft_model

from llm_forget import testing
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.evaluation.passes.gradients import gradient_norms, select_parameters


def direct(model, row: Encoded, chosen: list[torch.nn.Parameter]) -> float:
    """Compute the norm with the model's own loss and autograd.grad."""
    model.eval()
    labels = torch.tensor([row.input_ids])
    labels[0, : row.prompt_length] = -100
    loss = model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
    gradients = torch.autograd.grad(loss, chosen, allow_unused=True)
    return float(sum(one.square().sum() for one in gradients if one is not None).sqrt())  # type: ignore[union-attr]


def test_equals_autograd() -> None:
    model = tiny_model()
    rows = random_rows(5, model.config.vocab_size)
    expected = [direct(model, row, list(model.parameters())) for row in rows]
    found = gradient_norms(model.train(), rows, pad_token_id=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.min() > 0
    assert model.training
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_a_tied_weight_counts_once() -> None:
    """Tied embedding and head are one weight with one gradient, the sum over both uses."""
    tokenizer = testing.tiny_tokenizer()
    model = testing.tiny_model(tokenizer, hidden=16)
    rows = random_rows(3, len(tokenizer), seed=4)
    expected = [direct(model, row, list(model.parameters())) for row in rows]
    np.testing.assert_allclose(gradient_norms(model, rows, pad_token_id=0), expected, rtol=1e-4)


def test_a_subset_of_the_weights() -> None:
    model = tiny_model()
    rows = random_rows(2, model.config.vocab_size)
    chosen = [weight for name, weight in model.named_parameters() if "layers.1." in name]
    expected = [direct(model, row, chosen) for row in rows]
    found = gradient_norms(model, rows, pad_token_id=0, parameters=r"layers\.1\.")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found < gradient_norms(model, rows, pad_token_id=0)).all()


def test_base_gradients_under_an_adapter_equal_those_of_the_merged_model() -> None:
    """This makes models with and without an adapter comparable; the adapter's own matrices are a separate set."""
    wrapped = get_peft_model(
        tiny_model(), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    rows = random_rows(3, 100)
    before = {name: weight.requires_grad for name, weight in wrapped.named_parameters()}
    by_base = gradient_norms(wrapped, rows, pad_token_id=0)
    by_adapter = gradient_norms(wrapped, rows, pad_token_id=0, parameters="adapter")
    assert {name: weight.requires_grad for name, weight in wrapped.named_parameters()} == before
    adapter = [weight for name, weight in wrapped.named_parameters() if "lora_" in name]
    np.testing.assert_allclose(by_adapter, [direct(wrapped, row, adapter) for row in rows], rtol=1e-4)
    merged = wrapped.merge_and_unload().requires_grad_(True)
    np.testing.assert_allclose(by_base, gradient_norms(merged, rows, pad_token_id=0), rtol=1e-3)


def test_a_member_has_the_smaller_gradient() -> None:
    tokenizer = testing.tiny_tokenizer()
    model = testing.tiny_model(tokenizer)
    known, unknown = random_rows(4, len(tokenizer), seed=0), random_rows(4, len(tokenizer), seed=1)
    testing.memorise(model, known, steps=80)
    members, others = (gradient_norms(model, rows, pad_token_id=0) for rows in (known, unknown))
    assert members.max() < others.min()


def test_existing_gradients_are_kept() -> None:
    model = tiny_model()
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    kept = [weight.grad.clone() for weight in model.parameters()]
    with torch.no_grad():  # as in evaluations
        gradient_norms(model, random_rows(2, 50), pad_token_id=0)
    for weight, gradient in zip(model.parameters(), kept, strict=True):
        assert torch.equal(weight.grad, gradient)


def test_rows_without_a_token_and_broken_models_are_nan() -> None:
    model = tiny_model()
    rows = [Encoded("empty", (4,), 1), *random_rows(1, 50), Encoded("empty", (4,), 0)]
    assert np.isnan(gradient_norms(model, rows, pad_token_id=0)).tolist() == [True, False, True]
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert np.isnan(gradient_norms(model, rows, pad_token_id=0)).all()


def test_processes_share_the_rows() -> None:
    model = tiny_model()
    rows = [*random_rows(4, 50), Encoded("empty", (4,), 1)]
    kept: list[torch.Tensor] = []

    class Accelerator(Rank):
        device = torch.device("cpu")

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            kept.append(tensor)
            return torch.stack(kept).sum(0)

    gradient_norms(model, rows, pad_token_id=0, accelerator=Accelerator(2, 0))
    found = gradient_norms(model, rows, pad_token_id=0, accelerator=Accelerator(2, 1))
    np.testing.assert_allclose(found, gradient_norms(model, rows, pad_token_id=0), rtol=1e-6)


def test_unknown_weights_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match=r"no weight of the model matches; .*model\.embed_tokens"):
        select_parameters(model, "adapter")
    with pytest.raises(UserError, match="not a valid regular expression"):
        select_parameters(model, "layers(")
    model.register_parameter("packed", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(UserError, match="quantised and have no gradient"):
        select_parameters(model, "all")
