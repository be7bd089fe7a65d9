"""Test the contract of every file in `llm_forget/methods`. New methods are found automatically."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scorer import OPTIONAL, PAD, Scorer, leaf_of, made_up, method_class, numeric_fields
from torch import nn

from llm_forget.config import AdapterConfig
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.model.blocks import add_adapter, block_of
from llm_forget.model.logprobs import hidden_layer
from llm_forget.model.measure import answer_logps
from llm_forget.utils import plugins
from llm_forget.utils.build import build

METHODS = plugins.names_in("llm_forget.methods")
ScorerOf = Callable[..., Scorer]
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_is_a_frozen_dataclass_that_cites_its_paper(name: str) -> None:
    cls = method_class(name)
    assert cls.__bases__ == (Method,), "a method derives from Method, and not from another method"
    assert cls.__dataclass_params__.frozen
    assert cls.default_retain is None or cls.default_retain in plugins.names_in("llm_forget.retain")
    module = importlib.import_module(cls.__module__)
    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    docs = " ".join(inspect.getdoc(thing) or "" for thing in (module, cls, *functions))
    papers = re.findall(r"arXiv:\d{4}\.\d{4,5}", cls.paper)
    assert papers, "`paper` names no arXiv number"
    assert papers[0] in docs, f"no docstring names {papers[0]}"


@every_method
def test_padding_and_other_rows_change_nothing(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: ScorerOf
) -> None:
    scorer = scorer_of(name)
    together = scorer.loss(memorised, rows)
    wider = scorer.loss(memorised, rows, width=64)
    reverse = scorer.loss(memorised, rows[::-1]).flip(0)
    alone = torch.cat([scorer.loss(memorised, [row]) for row in rows])
    assert together.shape == (len(rows),), "the loss must give one value per example"
    assert len(set(together.tolist())) == len(rows), "the examples differ, so their losses must differ"
    for other in (wider, reverse, alone):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-4)


@every_method
def test_an_example_without_answer_tokens_gives_a_finite_loss_and_no_gradient(name: str) -> None:
    method, leaf = method_class(name)(), leaf_of((2, 2))
    mask = torch.tensor([[True, True], [False, False]])
    losses = method.forget_loss(made_up(method, leaf, mask, reference=0.0))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad[0].abs().max() > 0
    assert not leaf.grad[1].any()


@every_method
def test_the_reference_gets_no_gradient(name: str) -> None:
    method = method_class(name)()
    scores = made_up(method, leaf_of((2, 3)), torch.ones(2, 3, dtype=torch.bool))
    given = [scores.reference_logps, scores.reference_logits]
    if scores.alternative is not None:
        given.append(scores.alternative.reference_logps)
    theirs = [value.requires_grad_() for value in given if value is not None]
    method.forget_loss(scores).sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in theirs)


@every_method
def test_a_bounded_loss_stops_decreasing(name: str) -> None:
    """From log-prob −10⁴ to −2·10⁴ per token, an unbounded loss decreases by thousands and a bounded one does not change."""
    method, mask = method_class(name)(), torch.ones(1, 2, dtype=torch.bool)
    near, far = (method.forget_loss(made_up(method, leaf_of((1, 2), value), mask)) for value in (-1e4, -2e4))
    assert near.isfinite().all()
    assert far.isfinite().all()
    assert (float((far - near).detach()) > -1e-3) == method.bounded


@every_method
@pytest.mark.parametrize(("how", "rate"), [("lora", 2e-2), ("full", 2e-3)])
def test_three_steps_change_the_forget_probability_in_the_right_direction(
    name: str, how: str, rate: float, memorised: nn.Module, rows: list[Encoded], scorer_of: ScorerOf
) -> None:
    """An adapter starts at zero and acts through a small A, so it needs the higher learning rate."""
    scorer, model = scorer_of(name, memorised), copy.deepcopy(memorised)
    torch.manual_seed(0)
    if how == "lora":
        model = add_adapter(model, AdapterConfig(rank=4, alpha=4))
    before = answer_logps(model, rows, PAD)[1]
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=rate)
    for _ in range(3):
        optimiser.zero_grad()
        scorer.loss(model, rows).mean().backward()
        optimiser.step()
    moved = answer_logps(model, rows, PAD)[1] - before
    assert 0.1 < before.mean() < 0.99, "the model should know its rows and leave room for an increase"
    assert float(moved.mean()) * (1 if scorer.method.towards else -1) > 1e-3


@every_method
def test_works_under_bf16_autocast(name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: ScorerOf) -> None:
    scorer = scorer_of(name, memorised)
    exact = scorer.loss(memorised, rows)
    model = add_adapter(copy.deepcopy(memorised).to(torch.bfloat16), AdapterConfig(rank=4, alpha=4))
    with torch.autocast("cpu", torch.bfloat16):
        losses = scorer.loss(model, rows)
    losses.mean().backward()
    layer = hidden_layer(model, scorer.method.needs.layer) if scorer.method.needs.hidden else 99
    trained = [p for key, p in model.named_parameters() if p.requires_grad and (block_of(key) or 0) <= layer]
    assert losses.dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.grad is not None for value in trained)
    assert all(value.grad.isfinite().all() for value in trained)
    assert sum(float(value.grad.abs().sum()) for value in trained) > 0
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.1)


@every_method
def test_accumulation_gives_the_same_gradient(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: ScorerOf
) -> None:
    """The average of the means over equal micro-batches is the mean over all rows: 1 × 4 = 2 × 2 = 4 × 1."""
    scorer, gradients = scorer_of(name), []
    for size in (4, 2, 1):
        model = copy.deepcopy(memorised)
        for start in range(0, len(rows), size):
            (scorer.loss(model, rows[start : start + size]).mean() * size / len(rows)).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert gradients[0].abs().max() > 1e-5
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in METHODS for field in numeric_fields(name)])
@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "many", [1]])
def test_refuses_a_bad_hyper_parameter_by_name(name: str, field: str, bad: Any) -> None:
    with pytest.raises(RecipeError, match=field):
        build(method_class(name), {field: bad}, f"method {name}")


@every_method
def test_a_recipe_cannot_set_class_attributes(name: str) -> None:
    with pytest.raises(RecipeError, match="needs: unknown key"):
        build(method_class(name), {"needs": None}, f"method {name}")


@every_method
def test_needs_lists_exactly_the_tensors_that_are_read(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: ScorerOf
) -> None:
    """The loss works with the tensors in ``needs``, and raises an error that names the method if one is missing."""
    scorer = scorer_of(name, memorised)
    scores, needs = scorer(memorised, rows), scorer.method.needs
    for what in OPTIONAL:
        assert (getattr(scores, what) is not None) == getattr(needs, what), what
    assert scorer.method.forget_loss(scores).isfinite().all()
    for missing in (what for what in OPTIONAL if getattr(needs, what)):
        with pytest.raises(ValueError, match=name):
            scorer.method.forget_loss(dataclasses.replace(scores, **{missing: None}))
