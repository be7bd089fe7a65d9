"""Test the trainer on a tiny model: splits of a step, the reference, and gradients that must not reach the weights."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import schedule
from llm_forget.errors import UserError
from llm_forget.methods import Method
from llm_forget.methods.grad_ascent import GradAscent
from llm_forget.methods.grad_diff import GradDiff
from llm_forget.methods.npo import NPO
from llm_forget.model.blocks import add_adapter, compile_blocks
from llm_forget.model.logprobs import Part, score_answers
from llm_forget.model.measure import SampleMeter, answer_logps
from llm_forget.model.weights import frozen_copy, restore_trainable, trainable_state
from llm_forget.retain.kl import KL
from llm_forget.retain.nll import NLL
from llm_forget.stop import StopRule
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairCollator, PairDataset, PairRow
from llm_forget.train.callbacks import StopCallback
from llm_forget.train.objective import Objective, References
from llm_forget.train.trainer import UnlearningTrainer

PAD = 0
FORGET = [Encoded(f"f{row}", tuple((row * 7 + place * 5) % 200 + 3 for place in range(6 + row)), 3) for row in range(8)]
RETAIN = [
    Encoded(f"r{row}", tuple((row * 11 + place * 3) % 200 + 40 for place in range(12 - row)), 2) for row in range(8)
]


class Watch(TrainerCallback):
    """Record the logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.rows.append(dict(logs))


@pytest.fixture(scope="module")
def base() -> nn.Module:
    model = tiny_model(tiny_tokenizer(), hidden=32)
    memorise(model, FORGET + RETAIN, steps=12)
    return model


def with_adapter(base: nn.Module, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return add_adapter(copy.deepcopy(base), AdapterConfig(rank=4, alpha=8, dropout=dropout))


def fp32_arguments(train: TrainConfig, with_adapter: bool = True) -> TrainingArguments:
    """Return arguments for fp32 on the CPU; bf16 rounding would hide the compared differences."""
    return dataclasses.replace(unlearning_arguments(train, 0, with_adapter), bf16=False, use_cpu=True)


def train(
    model: nn.Module,
    objective: Objective,
    batch: int = 8,
    accumulation: int = 1,
    epochs: int = 3,
    adapter: bool = True,
    callbacks: tuple[Any, ...] = (),
    **settings: Any,
) -> tuple[UnlearningTrainer, list[dict[str, Any]]]:
    kept = RETAIN if objective.retain is not None else []
    pairs = schedule(
        [len(row.input_ids) for row in FORGET],
        [len(row.input_ids) for row in kept],
        batch=batch * accumulation,
        epochs=epochs,
        seed=0,
    )
    watch = Watch()
    chosen = TrainConfig(batch_size=batch, gradient_accumulation=accumulation, **{"learning_rate": 1e-2, **settings})
    trainer = UnlearningTrainer(
        model,
        fp32_arguments(chosen, adapter),
        PairDataset(FORGET, kept, pairs),
        objective,
        pad_token_id=PAD,
        reference=References(answer_logps(model, FORGET, PAD)[0], model=None if adapter else frozen_copy(model)),
        callbacks=[watch, *callbacks],
    )
    trainer.train()
    return trainer, [row for row in watch.rows if "loss" in row]


@pytest.mark.parametrize("objective", [Objective(NPO(), NLL()), Objective(GradDiff(), KL(), 0.5, 2.0)])
def test_the_trajectory_does_not_depend_on_the_split_of_a_step(base: nn.Module, objective: Objective) -> None:
    """1 × 8, 4 × 2 and 8 × 1 micro-batches × rows: a mean over micro-batches of equal size is the mean over the step's rows.

    Adam divides by |gradient|, so the rounding error of a near-zero gradient becomes a full step, and an
    epsilon of 1e-8 does not prevent that. Hence SGD, where the update is the gradient.
    """
    runs = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        model = with_adapter(base)
        start = trainable_state(model)
        trainer, rows = train(model, objective, batch, accumulation, optimizer="sgd", learning_rate=0.5)
        assert trainer.state.global_step == 3
        runs.append((rows, trainable_state(model)))
    assert max(float((runs[0][1][name] - start[name]).abs().max()) for name in start) > 1e-2, "training moved nothing"
    for rows, state in runs[1:]:
        for mine, first in zip(rows, runs[0][0], strict=True):
            for name in ("loss", "forget_loss", "retain_loss", "forget_probability", "grad_norm"):
                assert mine[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5), name
        assert max(float((state[name] - value).abs().max()) for name, value in runs[0][1].items()) <= 1e-5


def test_the_logged_loss_is_the_weighted_sum_of_its_parts(base: nn.Module) -> None:
    _, rows = train(with_adapter(base), Objective(NPO(beta=0.5), NLL(), forget_weight=0.25, retain_weight=3.0), 2, 4)
    assert len(rows) == 3
    for row in rows:
        assert row["loss"] == pytest.approx(0.25 * row["forget_loss"] + 3.0 * row["retain_loss"], rel=1e-4)


def test_the_first_loss_is_that_of_the_untrained_adapter(base: nn.Module) -> None:
    """The first loss is NPO's (2/β) ln 2 = 13.8629 on every row, plus the cross-entropy of all retain rows."""
    _, rows = train(with_adapter(base), Objective(NPO(), NLL()), epochs=1)
    expected = -score_answers(base, collate(RETAIN, PAD)).mean_logps.mean()
    assert rows[0]["forget_loss"] == pytest.approx(13.8629, rel=1e-4)
    assert rows[0]["retain_loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("adapter", [True, False])
def test_the_reference_of_kl_is_the_model_before_training(base: nn.Module, adapter: bool) -> None:
    """After the adapter has changed the policy, the reference's logits are still those of the base, without dropout."""
    model = with_adapter(base, dropout=0.5) if adapter else copy.deepcopy(base)
    settings: dict[str, Any] = {} if adapter else {"optimizer": "sgd", "learning_rate": 0.1}
    trainer, rows = train(model, Objective(GradAscent(), KL()), adapter=adapter, **settings)
    batch = collate(FORGET + RETAIN, PAD)
    for module in (*model.modules(), *(trainer.reference.model or nn.Module()).modules()):
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5  # dropout of the base, which stays on if the adapter is disabled
    model.train()
    reference = trainer._score_reference(model, batch, Part(slice(None), logits=True))
    truth = score_answers(base.eval(), batch, keep_logits=True)
    assert reference.logits is not None
    assert truth.logits is not None
    torch.testing.assert_close(reference.logits, truth.logits, rtol=1e-5, atol=1e-5)
    assert not reference.logits.requires_grad
    assert model.training, "and the model trains on"
    assert (score_answers(model.eval(), batch).token_logps - truth.token_logps).abs().max() > 1e-2
    if not adapter:
        assert rows[0]["retain_loss"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["retain_loss"] > 1e-4


def test_satisfied_examples_are_excluded(base: nn.Module) -> None:
    """The threshold is between the rows' probabilities; rows at or below it give neither loss nor gradient."""
    batch = PairCollator(PAD)([PairRow(index, row) for index, row in enumerate(FORGET)])
    model = with_adapter(base)
    known = answer_logps(model, FORGET, PAD)[1]
    threshold = float(known.median())
    counted = known > threshold
    assert 0 < int(counted.sum()) < len(FORGET)
    gradients = []
    for objective, weights in (
        (Objective(GradAscent(), None, satisfied_below=threshold), torch.ones(8)),
        (Objective(GradAscent(), None), counted.float()),
    ):
        trainer, _ = train(copy.deepcopy(model), objective, epochs=1, learning_rate=1e-12)
        losses = trainer.compute_loss(model, batch)
        if objective.satisfied_below is None:
            losses = (score_answers(model, batch).mean_logps * weights).mean()
        model.zero_grad()
        losses.backward()
        gradients.append([losses.detach(), *(v.grad.clone() for n, v in model.named_parameters() if "lora_B" in n)])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_no_step_if_all_examples_are_satisfied(base: nn.Module) -> None:
    model = with_adapter(base)
    before = trainable_state(model)
    _, rows = train(model, Objective(GradAscent(), None, satisfied_below=1.0), epochs=1)
    assert rows[0]["loss"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in trainable_state(model).items())


class Explodes(Method):
    """Gradient ascent with NaN from the third loss on."""

    bounded = False

    def __init__(self) -> None:
        self.calls = 0

    def forget_loss(self, forget: Any) -> Tensor:
        self.calls += 1
        return forget.mean_logps * (float("nan") if self.calls > 2 else 1.0)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_non_finite_gradient_ends_the_run_before_it_changes_a_weight(base: nn.Module, max_grad_norm: float) -> None:
    model, method = with_adapter(base), Explodes()
    rule = StopRule(0.0, None, 1)
    stopping = StopCallback(SampleMeter(FORGET, [], PAD), rule, every=1)
    stopping.begin(model, stopping.meter(model, 0))
    states: list[dict[str, Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            states.append(trainable_state(model))

    trainer, _ = train(
        model, Objective(method, None), epochs=9, callbacks=(Keep(), stopping), max_grad_norm=max_grad_norm
    )
    assert trainer.non_finite_at == 3
    assert len(states) == 3, "the run ended at the bad step"
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert "not finite at step 3" in stopping.settle(model, trainer.non_finite_at)
    assert answer_logps(model, FORGET, PAD)[1].isfinite().all()


def test_settle_restores_the_best_state_and_reports_it(base: nn.Module) -> None:
    """The first check is below the floor, so the initial state is restored bit for bit."""
    model = with_adapter(base)
    meter = SampleMeter(FORGET, RETAIN, PAD)
    start = meter(model, 0)
    before = trainable_state(model)
    stopping = StopCallback(meter, StopRule(0.0, start.retain, 1), every=1, keeps=False)
    stopping.begin(model, start)
    trainer, _ = train(model, Objective(GradAscent(), None), epochs=9, callbacks=(stopping,))
    assert trainer.state.global_step < 9
    reason = stopping.settle(model, None)
    assert "did not recover over 1 check; " in reason
    assert "nothing is changed" in reason
    assert "Try a retain term (retain.name: kl), more train.epochs" in reason
    assert all(torch.equal(before[name], value) for name, value in trainable_state(model).items())


def test_a_set_that_was_not_known_before_is_not_called_forgotten(base: nn.Module) -> None:
    model = with_adapter(base)
    meter = SampleMeter(FORGET, RETAIN, PAD)
    start = meter(model, 0)
    stopping = StopCallback(meter, StopRule(start.forget, 0.0, 1), every=1)
    stopping.begin(model, start)
    assert stopping.judge(model, dataclasses.replace(start, step=3))
    reason = stopping.settle(model, None)
    assert reason.startswith(f"the forget set was not known before: its probability was {start.forget:.3g} before")
    assert reason.endswith("nothing is claimed; training stopped at step 3")
    assert "reached" not in reason


def test_restore_trainable_round_trips_and_holds_no_reference(base: nn.Module) -> None:
    model = with_adapter(base)
    state = trainable_state(model)
    assert state
    assert all("lora_" in name for name in state)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(1.0)
    changed = trainable_state(model)
    restore_trainable(model, state)
    for name, value in trainable_state(model).items():
        assert torch.equal(value, state[name])
        assert not torch.equal(value, changed[name])


def test_training_on_retain_rows_never_reads_the_forget_rows(base: nn.Module) -> None:
    """In healing, without a method, other forget rows give the same weights."""
    states = []
    for forget in (FORGET, FORGET[::-1]):
        model = with_adapter(base)
        pairs = [(index, index) for index in range(8)]
        trainer = UnlearningTrainer(
            model,
            fp32_arguments(TrainConfig(batch_size=4, learning_rate=1e-2)),
            PairDataset(forget, RETAIN, pairs),
            Objective(None, NLL()),
            pad_token_id=PAD,
        )
        trainer.train()
        states.append(trainable_state(model))
    for name, value in states[0].items():  # Adam's step is 1e-2; different padding gives different rounding
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [True, "selective"])
def test_gradient_checkpointing_changes_nothing(base: nn.Module, kind: Any) -> None:
    states = []
    for checkpointing in (False, kind):
        model = with_adapter(base)
        train(model, Objective(NPO(), KL()), epochs=2, gradient_checkpointing=checkpointing)
        states.append(trainable_state(model))
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and gradients of two batches of different width, traced forward and backward without generating C++ code."""
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compile_block(self, backend="aot_eager", **how))
    plain = with_adapter(tiny_model(tiny_tokenizer(), hidden=32, layers=1)).train()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for rows in (FORGET, RETAIN[:5]):
        gradients = []
        for model in (plain, compiled):
            loss = score_answers(model, collate(rows, PAD)).mean_logps.mean()
            model.zero_grad()
            loss.backward()
            gradients.append([loss.detach(), *(v.grad for v in model.parameters() if v.grad is not None)])
        for mine, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "something was compiled"


def test_a_model_without_a_list_of_blocks_cannot_be_compiled() -> None:
    with pytest.raises(UserError, match="has no list of layers to compile"):
        compile_blocks(nn.Linear(1, 1))


def test_missing_reference_log_probs_are_an_error_that_names_the_method(base: nn.Module) -> None:
    trainer = UnlearningTrainer(
        with_adapter(base),
        fp32_arguments(TrainConfig()),
        PairDataset(FORGET, [], [(0, None)]),
        Objective(NPO(), None),
        pad_token_id=PAD,
    )
    with pytest.raises(ValueError, match="NPO needs reference log-probs"):
        trainer.train()
