"""What every file in `llm_forget/methods` has to keep to: a new method is tested here without a line being written for it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from llm_forget import plugins
from llm_forget.config import AdapterConfig, build
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message
from llm_forget.errors import RecipeError
from llm_forget.logprobs import AnswerScores, score_answers
from llm_forget.measure import answer_logps
from llm_forget.methods import Method
from llm_forget.models import add_adapter
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

METHODS = plugins.names_in("llm_forget.methods")
PAD = 0
TEXTS = [
    ("Where is Ada?", "In Riga, by the sea."),
    ("Who is Bo?", "A tailor."),
    ("And Cy?", "Left."),
    ("Di?", "A red cat."),
]

every_method = pytest.mark.parametrize("name", METHODS)


def method_class(name: str) -> Any:
    return plugins.find_class("llm_forget.methods", name, "forget_loss")


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    examples = [Example(str(index), (Message("user", q),), a) for index, (q, a) in enumerate(TEXTS)]
    return encode_all(tiny_tokenizer(), examples, EncodingConfig())[0]


@pytest.fixture(scope="module")
def memorised(rows: list[Encoded]) -> nn.Module:
    model = tiny_model(tiny_tokenizer())
    memorise(model, rows, steps=15)
    return model


def scored(method: Method, model: nn.Module, rows: list[Encoded], reference: nn.Module, width: int = 1) -> AnswerScores:
    """The policy's scores with exactly what the method says that it needs."""
    batch, needs = collate(rows, PAD, width), method.needs
    scores = score_answers(model, batch, keep_logits=needs.logits)
    with torch.no_grad():
        theirs = score_answers(reference, batch, keep_logits=True)
    return dataclasses.replace(
        scores,
        reference_logps=theirs.logps if needs.reference_logps else None,
        reference_logits=theirs.logits if needs.reference_logits else None,
    )


def made_up(method: Method, token_logps: Tensor, mask: Tensor, reference: float = -3.0) -> AnswerScores:
    """Scores without a model: random logits, and the same log-prob under the reference for all."""
    torch.manual_seed(0)
    size, needs = (*mask.shape, 7), method.needs
    return AnswerScores(
        token_logps=token_logps,
        mask=mask,
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        logits=torch.randn(size) * mask[..., None] if needs.logits else None,
        reference_logps=torch.full((len(mask),), reference) if needs.reference_logps else None,
        reference_logits=torch.randn(size) * mask[..., None] if needs.reference_logits else None,
    )


@every_method
def test_is_a_frozen_dataclass_that_says_what_it_is(name: str) -> None:
    cls = method_class(name)
    assert isinstance(cls(), Method)
    assert cls.__dataclass_params__.frozen
    assert cls.default_retain is None or cls.default_retain in plugins.names_in("llm_forget.retain")
    module = importlib.import_module(f"llm_forget.methods.{name}")
    functions = [
        value for _, value in inspect.getmembers(module, inspect.isfunction) if value.__module__ == module.__name__
    ]
    docs = " ".join(inspect.getdoc(thing) or "" for thing in (module, cls, *functions))
    papers = re.findall(r"arXiv:\d{4}\.\d{4,5}", cls.paper)
    assert papers, "`paper` names no arXiv number"
    assert papers[0] in docs, f"no docstring names {papers[0]}"


@every_method
def test_padding_on_the_right_and_neighbours_change_nothing(
    name: str, memorised: nn.Module, rows: list[Encoded]
) -> None:
    method, reference = method_class(name)(), tiny_model(tiny_tokenizer(), seed=1)
    together = method.forget_loss(scored(method, memorised, rows, reference))
    wider = method.forget_loss(scored(method, memorised, rows, reference, width=64))
    reverse = method.forget_loss(scored(method, memorised, rows[::-1], reference)).flip(0)
    alone = torch.cat([method.forget_loss(scored(method, memorised, [row], reference)) for row in rows])
    assert together.shape == (len(rows),), "one value per example is needed"
    assert len(set(together.tolist())) == len(rows), "the examples differ, and so must their losses"
    for other in (wider, reverse, alone):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-4)


@every_method
def test_an_example_without_scored_tokens_gives_a_finite_loss_and_no_gradient(name: str) -> None:
    method = method_class(name)()
    mask = torch.tensor([[True, True], [False, False]])
    leaf = torch.full((2, 2), -1.5, requires_grad=True)
    losses = method.forget_loss(made_up(method, leaf * mask, mask, reference=0.0))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad[0].abs().min() > 0
    assert leaf.grad[1].tolist() == [0.0, 0.0]


@every_method
def test_the_reference_gets_no_gradient(name: str) -> None:
    method = method_class(name)()
    mask = torch.ones(2, 3, dtype=torch.bool)
    scores = made_up(method, torch.full((2, 3), -0.5, requires_grad=True), mask)
    theirs = [
        value.requires_grad_() for value in (scores.reference_logps, scores.reference_logits) if value is not None
    ]
    method.forget_loss(scores).sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in theirs)


@every_method
def test_bounded_means_that_the_loss_stops_falling(name: str) -> None:
    """Between log-probs of −10⁴ and −2·10⁴ per token an unbounded loss falls by thousands, a bounded one by nothing."""
    method = method_class(name)()
    mask = torch.ones(1, 2, dtype=torch.bool)
    near, far = (method.forget_loss(made_up(method, torch.full((1, 2), value), mask)) for value in (-1e4, -2e4))
    assert near.isfinite().all()
    assert far.isfinite().all()
    assert (float(far - near) > -1e-3) == method.bounded


@every_method
@pytest.mark.parametrize("how", ["lora", "full"])
def test_one_step_moves_the_forget_answers_the_right_way(
    name: str, how: str, memorised: nn.Module, rows: list[Encoded]
) -> None:
    method, model = method_class(name)(), copy.deepcopy(memorised)
    if how == "lora":
        model = add_adapter(model, AdapterConfig(rank=4, alpha=4))
    before = answer_logps(model, rows, PAD)[1]
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=2e-3)
    method.forget_loss(scored(method, model, rows, memorised)).mean().backward()
    optimiser.step()
    moved = answer_logps(model, rows, PAD)[1] - before
    assert 0.1 < before.mean() < 0.99, "the model should know its rows, and not so well that there is no way up"
    assert float(moved.mean()) * (1 if method.towards else -1) > 1e-3


@every_method
def test_works_under_bf16_autocast(name: str, memorised: nn.Module, rows: list[Encoded]) -> None:
    method = method_class(name)()
    exact = method.forget_loss(scored(method, memorised, rows, memorised))
    model = add_adapter(copy.deepcopy(memorised).to(torch.bfloat16), AdapterConfig(rank=4, alpha=4))
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.forget_loss(scored(method, model, rows, memorised))
    losses.mean().backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    assert losses.dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.grad is not None for value in trained)
    assert all(value.grad.isfinite().all() for value in trained)
    assert sum(float(value.grad.abs().sum()) for value in trained) > 0
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.1)


@every_method
def test_accumulation_gives_the_same_gradient(name: str, memorised: nn.Module, rows: list[Encoded]) -> None:
    """Means over micro-batches of equal size, averaged, are the mean over all rows: 1 × 4 = 2 × 2 = 4 × 1."""
    method, reference = method_class(name)(), tiny_model(tiny_tokenizer(), seed=1)
    gradients = []
    for size in (4, 2, 1):
        model = copy.deepcopy(memorised)
        for start in range(0, len(rows), size):
            part = scored(method, model, rows[start : start + size], reference)
            (method.forget_loss(part).mean() * size / len(rows)).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def _numeric_fields() -> list[tuple[str, str]]:
    found = []
    for name in METHODS:
        cls = method_class(name)
        hints = get_type_hints(cls)
        found += [
            (name, item.name) for item in dataclasses.fields(cls) if re.search("int|float", str(hints[item.name]))
        ]
    return found


@pytest.mark.parametrize(("name", "field"), _numeric_fields())
@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "many", [1]])
def test_refuses_a_bad_hyper_parameter_by_name(name: str, field: str, bad: Any) -> None:
    with pytest.raises(RecipeError, match=field):
        build(method_class(name), {field: bad}, f"method {name}")


@every_method
def test_refuses_to_have_its_class_facts_set_from_a_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match="needs: unknown key"):
        build(method_class(name), {"needs": None}, f"method {name}")


@every_method
def test_needs_are_honest(name: str, memorised: nn.Module, rows: list[Encoded]) -> None:
    """What is not asked for is not there, and is not missed; what is asked for and is not there is said."""
    method = method_class(name)()
    scores = scored(method, memorised, rows, memorised)
    assert (scores.logits is None, scores.reference_logps is None, scores.reference_logits is None) == (
        not method.needs.logits,
        not method.needs.reference_logps,
        not method.needs.reference_logits,
    )
    assert method.forget_loss(scores).isfinite().all()
    for missing in ("logits", "reference_logps", "reference_logits"):
        if getattr(method.needs, missing):
            with pytest.raises(ValueError, match=name):
                method.forget_loss(dataclasses.replace(scores, **{missing: None}))
