"""Frozen lower blocks are computed once for each row, and nothing else changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from llm_forget.config import AdapterConfig, UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model import lower, lower_trial
from llm_forget.model.blocks import add_adapter
from llm_forget.model.logprobs import Part, score_answers, score_parts
from llm_forget.model.lower import lower_states
from llm_forget.model.lower_trial import lower_blocks_once
from llm_forget.model.packing import packed_attention
from llm_forget.model.steady import steady_base
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

ROWS = [
    Encoded("a", (5, 9, 3, 8, 8, 1), 2),
    Encoded("b", (5, 9, 3, 7, 2), 3),
    Encoded("c", (11, 4, 6, 2, 9, 9, 9, 1), 3),
]


def adapted(model: nn.Module | None = None, share: float = 0.5, **config: Any) -> Any:
    """Adapters on the upper blocks, away from zero."""
    base = tiny_model(tiny_tokenizer(), layers=4) if model is None else model
    found = add_adapter(base, AdapterConfig(rank=2, alpha=2, top_share=share, **config))
    torch.manual_seed(3)
    for name, value in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return found


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64))


@contextmanager
def counted(model: Any, block: int) -> Iterator[list[int]]:
    """The rows that a block's attention is computed for, pass by pass."""
    seen: list[int] = []
    blocks = next(one for one in model.modules() if isinstance(one, nn.ModuleList))
    attention = next(part for name, part in blocks[block].named_children() if "attn" in name)
    handle = attention.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


def losses(model: Any, rows: list[Encoded]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    scores = score_answers(model, collate(rows, 0))
    scores.logps.sum().backward()
    return scores.token_logps.detach(), [value.grad.clone() for value in model.parameters() if value.grad is not None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [lambda: None, gpt2], ids=["llama", "gpt2"])
def test_losses_and_gradients_are_the_same_and_the_lower_blocks_do_not_run(
    make: Any, checkpointing: bool, packed: bool
) -> None:
    model = adapted(make())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with steady_base(model), packed_attention(model, wanted=packed) as packs:
        assert packs == packed
        model.train()
        plain = [losses(model, rows) for rows in (ROWS[:2], ROWS)]
        with lower_blocks_once(model) as states:
            assert states is not None
            assert states.first == 2
            with counted(model, 1) as below, counted(model, 2) as above:
                # two new rows; one more, with another longest row; then all are known
                found = [losses(model, ROWS[:2]), losses(model, ROWS)]
                assert len(below) == 2
                again = losses(model, ROWS)
                assert len(below) == 2
                assert len(above) >= 3
        assert lower_states(model) is None
        after = losses(model, ROWS)
    for one, other in zip([*plain, plain[1], plain[1]], [*found, again, after], strict=True):
        torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=1e-4)
    assert len(plain[0][1]) > 0


def test_only_the_bound_is_kept_and_the_others_are_computed_again() -> None:
    model = adapted().eval()
    whole = score_answers(model, collate(ROWS, 0)).logps
    with lower_blocks_once(model) as states:
        assert states is not None
        states.most = states.bytes + 4 * 64 * len(ROWS[0].input_ids)  # fp32, width 64: one row more
        start = states.computed
        for _ in range(3):
            torch.testing.assert_close(score_answers(model, collate(ROWS, 0)).logps, whole, atol=1e-5, rtol=1e-5)
            assert states.bytes <= states.most
        assert states.computed - start == 3 + 2 + 2


def test_hidden_states_of_a_frozen_block_are_those_of_a_whole_pass() -> None:
    model = adapted().eval()
    part = [Part(slice(None), hidden=True)]
    for layer in (0, 1, 2, 3):
        whole = score_parts(model, collate(ROWS, 0), part, layer=layer)[0].hidden
        with lower_blocks_once(model) as states:
            assert states is not None
            found = [score_parts(model, collate(ROWS, 0), part, layer=layer)[0].hidden for _ in range(2)]
        for one in found:
            torch.testing.assert_close(one, whole, atol=1e-5, rtol=1e-5)


def test_models_whose_lower_blocks_change_or_matter_elsewhere_compute_all_blocks() -> None:
    everywhere = adapted(share=1.0)
    head = adapted()
    head.get_output_embeddings().weight.requires_grad_(True)
    crossing = adapted()  # its last block reads what its first one computes
    blocks, carried = crossing.get_base_model().model.layers, []
    blocks[0].register_forward_hook(lambda _, __, out: carried.append(out))
    blocks[3].register_forward_hook(lambda _, __, out: out + carried[-1])
    for model in (everywhere, head, crossing):
        with lower_blocks_once(model) as states:
            assert states is None
            assert lower_states(model) is None


def test_a_copy_of_the_model_holds_no_states() -> None:
    model = adapted().eval()
    with lower_blocks_once(model) as states:
        score_answers(model, collate(ROWS, 0))
        assert states is not None
        assert states.bytes > 0
        assert lower_states(copy.deepcopy(model)) is None


def test_a_run_takes_the_same_steps_and_holds_nothing_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=4).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name in ("forget", "retain"):
        rows = (f'{{"question": "{name} {one}?", "answer": "the answer is {one}"}}\n' for one in range(4))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    held: list[Any] = []
    make = lower.states_below
    for kept in (True, False):
        monkeypatch.setattr(
            lower_trial,
            "states_below",
            lambda model, kept=kept: held.append(make(model)) or (held[-1] if kept else None),
        )
        recipe = {
            "model": {"name": str(tmp_path / "base")},
            "data": {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("forget", "retain")},
            "method": {"name": "npo"},
            "retain": {"name": "kl"},
            "adapter": {"rank": 2, "alpha": 2, "top_share": 0.5},
            "train": {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2},
            "stop": {"forget_target": None},
            "output_dir": str(tmp_path / f"run {kept}"),
        }
        unlearn(build(UnlearnRecipe, recipe, "test"))
    assert held[0].computed == 8 + 2  # each row once, and the two of the trial
    losses = [
        [row["loss"] for row in map(json.loads, (tmp_path / f"run {kept}" / "metrics.jsonl").open()) if "loss" in row]
        for kept in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5, rel=1e-5)
    assert len(set(losses[0])) == len(losses[0]) == 6
