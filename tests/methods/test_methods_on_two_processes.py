"""Test for every method that two processes (DDP over gloo) take the same steps as one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.model.measure import answer_logps
from llm_forget.model.weights import trainable_state
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairDataset
from llm_forget.train.build import trained_blocks
from llm_forget.train.objective import Objective, References
from llm_forget.train.teacher import novel_tokens, teacher_of
from llm_forget.train.trainer import UnlearningTrainer
from llm_forget.utils.plugins import find_class, names_in

METHODS = names_in("llm_forget.methods")
BATCH, STEPS, PAD = 4, 2, 0


def made_up_rows(kind: int) -> list[Encoded]:
    """Return eight rows of different lengths, so that the processes pad differently."""
    return [
        Encoded(f"{kind}-{row}", tuple((row * 7 + place * (3 + kind)) % 200 + 3 for place in range(6 + row)), 3)
        for row in range(BATCH * STEPS)
    ]


def steps_of(name: str, batch: int) -> dict[str, Tensor]:
    """Return the adapter after two SGD steps of a method with its default retain term."""
    forget, retain, others = (made_up_rows(kind) for kind in range(3))
    base = tiny_model(tiny_tokenizer(), hidden=32)
    memorise(base, forget + retain, steps=12)
    method: Any = find_class("llm_forget.methods", name, "forget_loss")()
    kept: Any = method.default_retain and find_class("llm_forget.retain", method.default_retain, "retain_loss")()
    objective = Objective(method, kept)
    torch.manual_seed(1)
    model = add_adapter(base, AdapterConfig(rank=4, alpha=8), trained_blocks(method, base, objective.layer))
    top, means = teacher_of(model, forget, PAD)
    other, _ = teacher_of(tiny_model(tiny_tokenizer(), hidden=32, seed=1), forget, PAD)
    # SGD, since Adam turns rounding errors of near-zero gradients into full steps
    chosen = TrainConfig(batch_size=batch, optimizer="sgd", learning_rate=0.5)
    trainer = UnlearningTrainer(
        model,
        dataclasses.replace(unlearning_arguments(chosen, 0, True), bf16=False, use_cpu=True),
        PairDataset(
            forget,
            retain if kept else [],
            [(row, row if kept else None) for row in range(len(forget))],
            others if method.needs.any_alternative else None,
        ),
        objective,
        pad_token_id=PAD,
        reference=References(
            answer_logps(model, forget, PAD)[0],
            answer_logps(model, others, PAD)[0],
            top=top,
            base_top=other,
            row_targets=means - 2.0,
            swapped_top=other,
            novel=novel_tokens(forget, retain),
        ),
    )
    before = trainable_state(model)
    trainer.train()
    assert trainer.state.global_step == STEPS
    return {key: value - before[key] for key, value in trainable_state(model).items()}


def on_each_of_two(folder: Path) -> None:
    torch.set_num_threads(1)
    for name in METHODS:
        moved = steps_of(name, BATCH // 2)
        if os.environ["RANK"] == "0":
            save_file(moved, folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    debug_launcher(on_each_of_two, (folder,), num_processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_steps_of_one(name: str, of_two: Path) -> None:
    """Equal to 1e-4 of the largest change, since the order of sums differs."""
    one, two = steps_of(name, BATCH), load_file(of_two / f"{name}.safetensors")
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 1e-6
    for key, value in one.items():
        assert float((two[key] - value).abs().max()) <= 1e-4 * largest, key
