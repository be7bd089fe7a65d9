"""Test that one process, accumulation, DDP and FSDP2 give one trajectory, and that sharded adapters are saved whole."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher
from accelerate.commands.config import load_config_from_file
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import schedule
from llm_forget.methods.npo import NPO
from llm_forget.model.blocks import add_adapter
from llm_forget.model.measure import answer_logps
from llm_forget.model.packing import packed_attention
from llm_forget.model.weights import in_shards, restore_trainable, trainable_state
from llm_forget.retain.kl import KL
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairDataset
from llm_forget.train.objective import Objective, References
from llm_forget.train.resume import Saving
from llm_forget.train.trainer import UnlearningTrainer

FORGET = [Encoded(f"f{row}", tuple((row * 7 + place * 5) % 200 + 3 for place in range(6 + row)), 3) for row in range(8)]
RETAIN = [
    Encoded(f"r{row}", tuple((row * 11 + place * 3) % 200 + 40 for place in range(12 - row)), 2) for row in range(8)
]
STEPS = 4


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.rows: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.rows.append(logs["loss"])


def policy() -> Any:
    base = tiny_model(tiny_tokenizer(), hidden=32)
    memorise(base, FORGET + RETAIN, steps=12)
    torch.manual_seed(1)
    return add_adapter(base, AdapterConfig(rank=4, alpha=8))


def sharded(model: Any) -> Any:
    """Apply FSDP2 block by block, as accelerate does, and tell the Trainer that the model is already sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    inner = model.get_base_model()
    for block in inner.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    inner._is_distributed_loading_by_transformers = True
    return model


def train(model: nn.Module, batch: int, accumulation: int, saving: Saving | None = None) -> list[float]:
    pairs = schedule(
        [len(row.input_ids) for row in FORGET], [len(row.input_ids) for row in RETAIN], batch=8, epochs=STEPS, seed=0
    )
    losses = Losses()
    chosen = TrainConfig(batch_size=batch, gradient_accumulation=accumulation, optimizer="sgd", learning_rate=0.5)
    arguments = dataclasses.replace(unlearning_arguments(chosen, 0, True), bf16=False, use_cpu=True)
    trainer = UnlearningTrainer(
        model,
        arguments,
        PairDataset(FORGET, RETAIN, pairs),
        Objective(NPO(), KL()),
        pad_token_id=0,
        reference=References(answer_logps(model, FORGET, 0)[0]),
        callbacks=[losses],
    )
    trainer.saving = saving
    with packed_attention(model) as on:
        assert on
        trainer.resume_or_begin()
    return losses.rows


def two_processes(folder: Path, kind: str) -> None:
    """In each of two processes, train and gather; the first process writes."""
    torch.set_num_threads(1)
    model = policy()
    if kind == "ddp":
        losses = train(model, 4, 1)
    else:
        losses = train(sharded(model), 4, 1, Saving(folder / "saved", {}, every=2, keep=2, say=lambda _: None))
    assert in_shards(model) == (kind == "fsdp2")
    state = trainable_state(model)
    again = {name: value + 1 for name, value in state.items()}
    restore_trainable(model, again)
    moved = trainable_state(model)
    if kind == "fsdp2":
        resumed = sharded(policy())
        goes_on = train(resumed, 4, 1, Saving(folder / "saved", {}, 0, 1, resume=True, say=lambda _: None))
        state_resumed = trainable_state(resumed)
    if int(os.environ["RANK"]) == 0:
        assert all(torch.equal(moved[name], value) for name, value in again.items())
        save_file(state, folder / f"{kind}.safetensors")
        (folder / f"{kind}.json").write_text(json.dumps(losses))
        policy().save_pretrained(folder / f"{kind}-adapter", state_dict=state)
        if kind == "fsdp2":
            assert len(goes_on) == 2, "from step 2 to step 4"
            assert goes_on == losses[2:]
            assert all(torch.equal(state_resumed[name], value) for name, value in state.items())


@pytest.mark.slow
def test_one_trajectory_for_every_split_of_the_step(tmp_path: Path) -> None:
    """Compare 1 × 8 with 8 × 1 accumulated, DDP 2 × 4 and FSDP2 2 × 4 over gloo: losses and weights to 1e-5 after 4 steps.

    SGD is used since Adam turns rounding errors of near-zero gradients into full steps. FSDP2 also resumes from its checkpoint,
    whose tensors are unsharded, to the same weights bit for bit.
    """
    model = policy()
    start = trainable_state(model)
    reference = train(model, 8, 1), trainable_state(model)
    assert max(float((reference[1][name] - value).abs().max()) for name, value in start.items()) > 1e-2
    model = policy()
    runs = {"accumulated": (train(model, 1, 8), trainable_state(model))}
    for kind in ("ddp", "fsdp2"):
        debug_launcher(two_processes, (tmp_path, kind), num_processes=2)
        runs[kind] = json.loads((tmp_path / f"{kind}.json").read_text()), load_file(tmp_path / f"{kind}.safetensors")
        adapter = load_file(tmp_path / f"{kind}-adapter" / "adapter_model.safetensors")
        assert len(adapter) == len(start)
        for name, value in runs[kind][1].items():
            assert torch.equal(adapter[name.replace(".default", "")], value), "the file holds the whole adapter"
    for kind, (losses, state) in runs.items():
        assert losses == pytest.approx(reference[0], rel=1e-5, abs=1e-5), kind
        gaps = torch.cat([(state[name] - value).abs().flatten() for name, value in reference[1].items()])
        print(f"{kind}: largest difference {float(gaps.max()):.1e}, mean {float(gaps.mean()):.1e}")
        assert float(gaps.max()) <= 1e-5, kind
    saved = load_file(tmp_path / "saved" / "step-00000002" / "tensors.safetensors")
    shapes = {name: tuple(value.shape) for name, value in saved.items() if name.startswith("/trainable")}
    assert sorted(shapes.values()) == sorted(tuple(value.shape) for value in start.values())


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero3"])
def test_accelerate_loads_the_shipped_configurations(name: str) -> None:
    config = load_config_from_file(f"recipes/accelerate/{name}.yaml")
    expected = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert str(config.distributed_type).rpartition(".")[2] == expected[name]
    assert config.mixed_precision == "no"


def test_accelerate_understands_the_shipped_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` passes the FSDP section in environment variables, which the plugin reads."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    config = load_config_from_file("recipes/accelerate/fsdp2.yaml")
    for key, value in config.fsdp_config.items():
        monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
