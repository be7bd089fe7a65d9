"""What every file in `llm_forget/methods` has to keep to: a new method is tested here without a line being written for it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from llm_forget.config import AdapterConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.model.blocks import add_adapter, block_of
from llm_forget.model.logprobs import Part, hidden_layer, score_parts
from llm_forget.model.measure import answer_logps
from llm_forget.scores import AnswerScores
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.utils import plugins
from llm_forget.utils.build import build

METHODS = plugins.names_in("llm_forget.methods")
PAD = 0
TEXTS = [
    ("Where is Ada?", "In Riga, by the sea."),
    ("Who is Bo?", "A tailor."),
    ("And Cy?", "Left."),
    ("Di?", "A red cat."),
]
OTHERS = ["I do not know.", "No idea.", "I never heard of it.", "That is not known to me."]

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


@pytest.fixture(scope="module")
def other_rows() -> list[Encoded]:
    """Another answer to each question, none of which the model has learned."""
    examples = [Example(str(index), (Message("user", q),), a) for index, (q, a) in enumerate(TEXTS)]
    return encode_all(tiny_tokenizer(), examples, EncodingConfig(), answers=OTHERS)[0]


class Scorer:
    """The policy's scores with exactly what the method says that it needs."""

    def __init__(self, method: Method, reference: nn.Module, others: dict[str, Encoded]) -> None:
        self.method, self.reference, self.others = method, reference, others

    def __call__(self, model: nn.Module, rows: list[Encoded], width: int = 1) -> AnswerScores:
        needs = self.method.needs
        others = [self.others[row.id] for row in rows]
        batch = collate([*rows, *(others if needs.alternative else [])], PAD, width)
        count = len(rows)
        parts = [Part(slice(0, count), needs.logits, needs.hidden)]
        if needs.alternative:
            parts.append(Part(slice(count, None)))
        layer = hidden_layer(model, needs.layer) if needs.hidden else None
        found = score_parts(model, batch, parts, layer=layer)
        every = [Part(part.rows, logits=True) for part in parts]
        with torch.no_grad():
            theirs = score_parts(self.reference, batch, every)
        if needs.reference_logps:
            found = [
                dataclasses.replace(ours, reference_logps=known.logps)
                for ours, known in zip(found, theirs, strict=True)
            ]
        answers = [torch.tensor(row.input_ids[row.prompt_length :]) for row in others]
        return dataclasses.replace(
            found[0],
            reference_logits=theirs[0].logits if needs.reference_logits else None,
            alternative=found[1] if needs.alternative else None,
            alternative_tokens=nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1)
            if needs.alternative_tokens
            else None,
        )

    def loss(self, model: nn.Module, rows: list[Encoded], width: int = 1) -> Tensor:
        return self.method.forget_loss(self(model, rows, width))


@pytest.fixture
def scorer_of(other_rows: list[Encoded]) -> Callable[..., Scorer]:
    """A scorer by method name; the reference is a model of other weights unless one is given."""

    def make(name: str, reference: nn.Module | None = None) -> Scorer:
        known = tiny_model(tiny_tokenizer(), seed=1) if reference is None else reference
        return Scorer(method_class(name)(), known, {row.id: row for row in other_rows})

    return make


def made_up(method: Method, leaf: Tensor, mask: Tensor, reference: float = -3.0) -> AnswerScores:
    """Scores without a model, all from one (B, A, V) leaf of logits: token 0 is the answer, token 1 the alternative."""
    torch.manual_seed(0)
    needs = method.needs
    kept, logps = leaf * mask[..., None], leaf.log_softmax(-1) * mask[..., None]
    known = torch.full((len(mask),), reference) if needs.reference_logps else None
    other = AnswerScores(logps[..., 1], mask, torch.ones_like(mask, dtype=torch.long), reference_logps=known)
    return AnswerScores(
        token_logps=logps[..., 0],
        mask=mask,
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        logits=kept if needs.logits else None,
        reference_logps=known,
        reference_logits=torch.randn(leaf.shape) * mask[..., None] if needs.reference_logits else None,
        hidden=kept if needs.hidden else None,
        alternative=other if needs.alternative else None,
        alternative_tokens=torch.ones_like(mask, dtype=torch.long) if needs.alternative_tokens else None,
    )


def leaf_of(size: tuple[int, int], answer_logit: float = 0.5) -> Tensor:
    """(B, A, 7) random logits whose first token has a given one."""
    leaf = torch.randn((*size, 7), generator=torch.Generator().manual_seed(0))
    leaf[..., 0] = answer_logit
    return leaf.requires_grad_()


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
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: Callable[..., Scorer]
) -> None:
    scorer = scorer_of(name)
    together = scorer.loss(memorised, rows)
    wider = scorer.loss(memorised, rows, width=64)
    reverse = scorer.loss(memorised, rows[::-1]).flip(0)
    alone = torch.cat([scorer.loss(memorised, [row]) for row in rows])
    assert together.shape == (len(rows),), "one value per example is needed"
    assert len(set(together.tolist())) == len(rows), "the examples differ, and so must their losses"
    for other in (wider, reverse, alone):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-4)


@every_method
def test_an_example_without_scored_tokens_gives_a_finite_loss_and_no_gradient(name: str) -> None:
    method = method_class(name)()
    mask = torch.tensor([[True, True], [False, False]])
    leaf = leaf_of((2, 2))
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
def test_bounded_means_that_the_loss_stops_falling(name: str) -> None:
    """Between log-probs of −10⁴ and −2·10⁴ per token an unbounded loss falls by thousands, a bounded one by nothing."""
    method = method_class(name)()
    mask = torch.ones(1, 2, dtype=torch.bool)
    near, far = (
        method.forget_loss(made_up(method, leaf_of((1, 2), answer_logit=value), mask)) for value in (-1e4, -2e4)
    )
    assert near.isfinite().all()
    assert far.isfinite().all()
    assert (float((far - near).detach()) > -1e-3) == method.bounded


@every_method
@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_few_steps_move_the_forget_answers_the_right_way(
    name: str, how: str, memorised: nn.Module, rows: list[Encoded], scorer_of: Callable[..., Scorer]
) -> None:
    """Three steps: some losses look at another answer, or at the states inside, and only so at the forget answer."""
    scorer, model = scorer_of(name, memorised), copy.deepcopy(memorised)
    torch.manual_seed(0)
    if how == "lora":
        model = add_adapter(model, AdapterConfig(rank=4, alpha=4))
    before = answer_logps(model, rows, PAD)[1]
    rate = 2e-2 if how == "lora" else 2e-3  # an adapter starts at zero, and acts through the small A
    optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=rate)
    for _ in range(3):
        optimiser.zero_grad()
        scorer.loss(model, rows).mean().backward()
        optimiser.step()
    moved = answer_logps(model, rows, PAD)[1] - before
    assert 0.1 < before.mean() < 0.99, "the model should know its rows, and not so well that there is no way up"
    assert float(moved.mean()) * (1 if scorer.method.towards else -1) > 1e-3


@every_method
def test_works_under_bf16_autocast(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: Callable[..., Scorer]
) -> None:
    scorer = scorer_of(name, memorised)
    exact = scorer.loss(memorised, rows)
    model = add_adapter(copy.deepcopy(memorised).to(torch.bfloat16), AdapterConfig(rank=4, alpha=4))
    with torch.autocast("cpu", torch.bfloat16):
        losses = scorer.loss(model, rows)
    losses.mean().backward()
    layer = hidden_layer(model, scorer.method.needs.layer) if scorer.method.needs.hidden else 99
    trained = [
        value for key, value in model.named_parameters() if value.requires_grad and (block_of(key) or 0) <= layer
    ]
    assert losses.dtype == torch.float32
    assert all(value.dtype == torch.float32 and value.grad is not None for value in trained)
    assert all(value.grad.isfinite().all() for value in trained)
    assert sum(float(value.grad.abs().sum()) for value in trained) > 0
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.1)


@every_method
def test_accumulation_gives_the_same_gradient(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: Callable[..., Scorer]
) -> None:
    """Means over micro-batches of equal size, averaged, are the mean over all rows: 1 × 4 = 2 × 2 = 4 × 1."""
    scorer = scorer_of(name)
    gradients = []
    for size in (4, 2, 1):
        model = copy.deepcopy(memorised)
        for start in range(0, len(rows), size):
            (scorer.loss(model, rows[start : start + size]).mean() * size / len(rows)).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert gradients[0].abs().max() > 1e-5
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
def test_needs_are_honest(
    name: str, memorised: nn.Module, rows: list[Encoded], scorer_of: Callable[..., Scorer]
) -> None:
    """What is not asked for is not there, and is not missed; what is asked for and is not there is said."""
    scorer = scorer_of(name, memorised)
    scores, needs = scorer(memorised, rows), scorer.method.needs
    optional = ("logits", "reference_logps", "reference_logits", "hidden", "alternative", "alternative_tokens")
    for what in optional:
        assert (getattr(scores, what) is not None) == getattr(needs, what), what
    assert scorer.method.forget_loss(scores).isfinite().all()
    for missing in optional:
        if getattr(needs, missing):
            with pytest.raises(ValueError, match=name):
                scorer.method.forget_loss(dataclasses.replace(scores, **{missing: None}))
