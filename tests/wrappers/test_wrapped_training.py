"""Test wrappers in training on a tiny model: the split of a step does not matter, and each wrapper has its effect."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import schedule
from llm_forget.methods.npo import NPO
from llm_forget.methods.rmu import RMU
from llm_forget.model.blocks import add_adapter
from llm_forget.model.logprobs import score_answers
from llm_forget.model.measure import answer_logps
from llm_forget.model.weights import frozen_copy, trainable_state
from llm_forget.retain.activation import Activation
from llm_forget.retain.kl import KL
from llm_forget.retain.nll import NLL
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairDataset
from llm_forget.train.objective import Objective, References
from llm_forget.train.trainer import UnlearningTrainer
from llm_forget.wrappers import StepGradient, Wrapper, cosine
from llm_forget.wrappers.dual import Dual
from llm_forget.wrappers.gru import GRU
from llm_forget.wrappers.sam import SAM
from llm_forget.wrappers.straight_through import StraightThrough, rounded

PAD = 0
FORGET = [Encoded(f"f{row}", tuple((row * 7 + place * 5) % 200 + 3 for place in range(6 + row)), 3) for row in range(4)]
RETAIN = [
    Encoded(f"r{row}", tuple((row * 11 + place * 3) % 200 + 40 for place in range(12 - row)), 2) for row in range(4)
]
ALL = [[SAM(rho=0.5)], [GRU()], [Dual(bound=0.01, step_size=5.0)], [StraightThrough(group=8)]]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    model = tiny_model(tiny_tokenizer(), hidden=32)
    memorise(model, FORGET + RETAIN, steps=12)
    return model


def policy_of(base: nn.Module, adapter: bool) -> nn.Module:
    torch.manual_seed(1)
    return add_adapter(copy.deepcopy(base), AdapterConfig(rank=4, alpha=8)) if adapter else copy.deepcopy(base)


def train(
    base: nn.Module,
    wrappers: list[Wrapper],
    objective: Objective | None = None,
    *,
    batch: int = 4,
    accumulation: int = 1,
    epochs: int = 3,
    adapter: bool = True,
    learning_rate: float = 0.5,
) -> tuple[dict[str, Tensor], list[dict[str, Any]], nn.Module]:
    """Run with plain SGD: the update is the gradient, so the effect of a wrapper is visible in the weights."""
    model, goal = policy_of(base, adapter), objective or Objective(NPO(), NLL())
    kept = RETAIN if goal.retain is not None else []
    pairs = schedule([1] * 4, [1] * len(kept), batch=batch * accumulation, epochs=epochs, seed=0)
    chosen = TrainConfig(
        batch_size=batch,
        gradient_accumulation=accumulation,
        learning_rate=learning_rate,
        optimizer="sgd",
        max_grad_norm=0.0,
    )
    trainer = UnlearningTrainer(
        model,
        dataclasses.replace(unlearning_arguments(chosen, 0, adapter), bf16=False, use_cpu=True),
        PairDataset(FORGET, kept, pairs),
        goal,
        pad_token_id=PAD,
        reference=References(answer_logps(model, FORGET, PAD)[0], model=None if adapter else frozen_copy(model)),
        wrappers=copy.deepcopy(wrappers),
    )
    trainer.train()
    return trainable_state(model), [row for row in trainer.state.log_history if "loss" in row], model


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert max(float((first[name] - value).abs().max()) for name, value in second.items()) <= tolerance


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - value).abs().max()) for name, value in second.items())


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("wrappers", ALL, ids=lambda some: type(some[0]).__name__)
def test_the_run_does_not_depend_on_the_split_of_a_step(
    base: nn.Module, wrappers: list[Wrapper], adapter: bool
) -> None:
    rate = 0.2 if adapter else 0.01
    runs = [
        train(base, wrappers, batch=batch, accumulation=4 // batch, adapter=adapter, learning_rate=rate, epochs=2)
        for batch in (4, 1)
    ]
    plain = train(base, [], adapter=adapter, learning_rate=rate, epochs=2)
    assert distance(runs[0][0], plain[0]) > 1e-5, "the wrapper changed nothing"
    for state, rows, _ in runs[1:]:
        assert_close(state, runs[0][0])
        for mine, first in zip(rows, runs[0][1], strict=True):
            for name in ("loss", "forget_loss", "retain_loss", "forget_probability"):
                assert mine[name] == pytest.approx(first[name], rel=1e-3, abs=1e-4), name


class Idle(Wrapper):
    """Split the gradient without changing it."""

    paper = cost = ""


@pytest.mark.parametrize(
    "objective",
    [
        Objective(NPO(), NLL(), 0.5, 3.0),
        Objective(NPO(), KL(), retain_weight=2.0),
        Objective(NPO(), None),
        Objective(RMU(coefficient=3.0), Activation(), 0.1),
        Objective(RMU(coefficient=3.0, layer=1), Activation(), 0.1),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_unchanged_split_gradient_equals_the_plain_one(
    base: nn.Module, objective: Objective, accumulation: int
) -> None:
    """The weighted sum of the two gradients equals the gradient of the weighted sum."""
    settings: dict[str, Any] = {"batch": 4 // accumulation, "accumulation": accumulation, "learning_rate": 0.02}
    plain, split = (train(base, some, objective, **settings) for some in ([], [Idle()]))
    assert_close(split[0], plain[0])
    for mine, first in zip(split[1], plain[1], strict=True):
        assert mine["loss"] == pytest.approx(first["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


def test_sam_with_radius_zero_changes_nothing(base: nn.Module) -> None:
    assert_close(train(base, [SAM(rho=0.0)])[0], train(base, [])[0])


def test_sam_steps_by_the_gradient_at_the_perturbed_weights(base: nn.Module) -> None:
    """By hand, in full fine-tuning: θ − η ∇ℓ(θ + ρ g/‖g‖), and the weights are restored afterwards."""
    rho, rate = 0.3, 0.05
    state, _, _ = train(base, [SAM(rho=rho)], Objective(NPO(), None), epochs=1, adapter=False, learning_rate=rate)
    model = policy_of(base, adapter=False)
    known = answer_logps(model, FORGET, PAD)[0]
    values = [value for value in model.parameters() if value.requires_grad]

    def gradients() -> list[Tensor]:
        scores = dataclasses.replace(score_answers(model, collate(FORGET, PAD)), reference_logps=known)
        return list(torch.autograd.grad(NPO().forget_loss(scores).mean(), values))

    first = gradients()
    norm = torch.stack([value.norm() for value in first]).norm()
    with torch.no_grad():
        for value, gradient in zip(values, first, strict=True):
            value.add_(rho * gradient / norm)
    second = gradients()
    with torch.no_grad():
        for value, gradient, moved in zip(values, first, second, strict=True):
            value.sub_(rho * gradient / norm).sub_(rate * moved)
    assert_close(state, trainable_state(model))


class Watch(Wrapper):
    """Record the gradient produced by the earlier wrappers."""

    paper = cost = ""

    def __init__(self) -> None:
        self.cosines: list[float] = []

    def __deepcopy__(self, memo: Any) -> Watch:
        return self

    def on_gradient(self, step: StepGradient) -> None:
        self.cosines.append(cosine(step.forget, step.retain))


def test_gru_removes_the_conflict(base: nn.Module) -> None:
    """Forget and retain rows of one small model have conflicting gradients; after GRU they do not."""
    before, after = Watch(), Watch()
    train(base, [before, GRU(smoothing=1.0), after], epochs=4)
    assert min(before.cosines) < -1e-3, "there was a conflict"
    assert min(after.cosines) > -1e-4


def test_dual_raises_the_weight_while_the_bound_is_exceeded_and_logs_it(base: nn.Module) -> None:
    _, rows, _ = train(base, [Dual(bound=0.0, step_size=2.0)], Objective(NPO(), NLL(), retain_weight=0.5))
    weights, losses = [row["retain_weight"] for row in rows], [row["retain_loss"] for row in rows]
    assert weights == pytest.approx([0.5, 0.5 + 2 * losses[0], 0.5 + 2 * (losses[0] + losses[1])], rel=1e-4)


@pytest.mark.parametrize("adapter", [True, False])
def test_straight_through_uses_rounded_weights_and_restores_the_model(base: nn.Module, adapter: bool) -> None:
    """Inside, the logits equal those of a copy with merged weights rounded by hand; outside, the model is unchanged."""
    model, wrapper = policy_of(base, adapter), StraightThrough(group=8)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    batch = collate(FORGET, PAD)
    plain = score_answers(model, batch).token_logps
    copied = copy.deepcopy(model)
    merged = copied.merge_and_unload() if adapter else copied
    with torch.no_grad():
        for name, module in merged.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                module.weight.copy_(rounded(module.weight, bits=4, group=8))
    with wrapper.during(model):
        inside = score_answers(model, batch).token_logps
        inside.sum().backward()
        if adapter:
            with model.disable_adapter():
                reference = score_answers(model, batch).token_logps
            torch.testing.assert_close(reference, score_answers(base, batch).token_logps)
    torch.testing.assert_close(inside, score_answers(merged, batch).token_logps, rtol=1e-4, atol=1e-4)
    assert (inside - plain).abs().max() > 1e-2
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    torch.testing.assert_close(score_answers(model, batch).token_logps, plain)
    assert not any("forward" in vars(module) for module in model.modules())


def test_straight_through_forgets_in_the_rounded_model(base: nn.Module) -> None:
    """The forget probability of the rounded model, as in a server with quantised weights, decreases."""
    wrapper, found = StraightThrough(bits=3, group=16), []
    for epochs in (0, 8):
        model = policy_of(base, adapter=True)
        if epochs:
            _, _, model = train(base, [wrapper], Objective(NPO(beta=1.0), NLL()), epochs=epochs, learning_rate=0.3)
        with wrapper.during(model):
            found.append(float(answer_logps(model, FORGET, PAD)[1].mean()))
    assert found[1] < 0.8 * found[0]


def test_wrappers_compose_in_the_order_of_the_recipe(base: nn.Module) -> None:
    watch = Watch()
    wrappers: list[Wrapper] = [StraightThrough(group=8), SAM(rho=0.1), GRU(smoothing=1.0), Dual(bound=0.01), watch]
    state, rows, _ = train(base, wrappers, epochs=2)
    assert min(watch.cosines) > -1e-4
    assert all(value.isfinite().all() for value in state.values())
    assert rows[1]["retain_weight"] != rows[0]["retain_weight"]


def test_gradient_checkpointing_changes_nothing(base: nn.Module) -> None:
    states = []
    for checkpointing in (False, True):
        model = policy_of(base, adapter=True)
        chosen = TrainConfig(batch_size=4, learning_rate=0.5, optimizer="sgd", gradient_checkpointing=checkpointing)
        trainer = UnlearningTrainer(
            model,
            dataclasses.replace(unlearning_arguments(chosen, 0, True), bf16=False, use_cpu=True),
            PairDataset(FORGET, RETAIN, [(index % 4, index % 4) for index in range(8)]),
            Objective(NPO(), NLL()),
            pad_token_id=PAD,
            reference=References(answer_logps(model, FORGET, PAD)[0]),
            wrappers=[StraightThrough(group=8), SAM(rho=0.2)],
        )
        trainer.train()
        states.append(trainable_state(model))
    assert_close(*states)
