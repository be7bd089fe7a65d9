"""Test packed against padded batches: same scores and gradients with fewer tokens, and padding for unsupported models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import PACKED_ROWS, scores_and_gradient
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from llm_forget.config import AdapterConfig, UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.model.layout import pack
from llm_forget.model.logprobs import Part, score_answers, score_parts
from llm_forget.model.measure import answer_logps
from llm_forget.model.packing import _Take, packed_attention, packs
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.build import build

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PACKING: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, sliding_window=32),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**{name: value for name, value in SMALL.items() if name != "num_key_value_heads"}),
}


def model_of(config: PreTrainedConfig, attention: str = "eager") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


def adapted(**more: Any) -> nn.Module:
    """Return a tiny Llama with an adapter that has an effect."""
    model = add_adapter(tiny_model(tiny_tokenizer(), seed=3), AdapterConfig(rank=2, alpha=2, **more))
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return model


def test_shared_prefixes_are_packed_once() -> None:
    """By hand: 4 for the system turn; b: 5 more; a: 3 more after 5 9 3; d: 3 more; c: 7 more; e none; f: 2."""
    batch = collate(PACKED_ROWS, 0)
    line = pack(batch["input_ids"], batch["attention_mask"])
    assert line is not None
    assert line.tokens.shape == line.positions.shape == (1, 4 + 5 + 3 + 3 + 7 + 2)
    assert len(line.layout["queries"]) == 5, "one row has no token of its own"


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=6))
@settings(deadline=None)
def test_every_row_can_be_recovered_from_the_pack(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    line = pack(ids, mask, worth=1.0)
    assert line is not None
    layout = line.layout
    for row, places in zip(rows, line.place.tolist(), strict=True):
        assert line.tokens[0, places[: len(row)]].tolist() == row
        assert line.positions[0, places[: len(row)]].tolist() == list(range(len(row)))
    distinct = {tuple(row[:size]) for row in rows for size in range(1, len(row) + 1)}
    assert line.tokens.shape[1] == len(distinct), "each beginning once"
    # each token attends exactly to itself and the earlier tokens of its row
    flat = layout["queries"].flatten()[layout["back"]]
    assert flat.tolist() == list(range(len(distinct)))
    sees = layout["mask"].flatten(0, 2)[layout["back"]]
    keys = layout["keys"].repeat_interleave(layout["queries"].shape[1], 0)[layout["back"]]
    seen = {tuple(line.tokens[0, keys[token][sees[token]]].tolist()) for token in range(len(distinct))}
    assert seen == distinct


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["full", "adapter", "checkpointed", "selective"])
def test_scores_and_gradients_equal_those_of_the_padded_batch(kind: str, attention: str) -> None:
    from llm_forget.model.checkpointing import checkpointing_arguments

    model: Any = tiny_model(tiny_tokenizer(), seed=3) if kind == "full" else adapted()
    model.set_attn_implementation(attention)
    model.train()
    if kind in ("checkpointed", "selective"):
        chosen: Any = "selective" if kind == "selective" else True
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_arguments(chosen))
    (padded, expected), (packed, found) = (scores_and_gradient(model, is_packed=on) for on in (False, True))
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PACKING)
def test_other_architectures(name: str) -> None:
    """Cover norms on queries and keys, soft caps with windows, learned positions, and parallel blocks."""
    model = model_of(PACKING[name])
    (padded, expected), (packed, found) = (scores_and_gradient(model, is_packed=on) for on in (False, True))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_logits_and_hidden_states_equal_those_of_the_padded_batch() -> None:
    model = adapted().eval()
    parts = [Part(slice(0, 2), logits=True), Part(slice(2, None), hidden=True)]
    padded = score_parts(model, collate(PACKED_ROWS, 0), parts, layer=0)
    with packed_attention(model):
        packed = score_parts(model, collate(PACKED_ROWS, 0), parts, layer=0)
    for mine, other in zip(packed, padded, strict=True):
        assert torch.equal(mine.tokens, other.tokens)
        for one, two in ((mine.logits, other.logits), (mine.hidden, other.hidden)):
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_gradients_of_shared_positions_are_summed_in_fp32() -> None:
    """The sum of 1,000 gradients of 1 + 1/128 is 1007.8, in bf16 1008; summed in bf16 it stops at 256, where the spacing is 2."""
    values = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    taken = _Take.apply(values, torch.zeros(1000, dtype=torch.long))
    taken.backward(torch.full_like(taken, 1 + 1 / 128))
    assert values.grad is not None
    assert values.grad.tolist() == [[1008.0] * 3, [0.0] * 3]
    double = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    _Take.apply(double, torch.zeros(2, dtype=torch.long)).backward(
        torch.tensor([[1.0], [2.0**-40]], dtype=torch.float64)
    )
    assert double.grad.item() == 1 + 2.0**-40, "and no lower type than its own"


def test_a_base_in_bf16_under_a_fresh_adapter_is_packed() -> None:
    """As in a GPU run: without PEFT's cast, and under autocast."""
    model = add_adapter(tiny_model(tiny_tokenizer(), seed=3).to(torch.bfloat16), AdapterConfig(rank=2, alpha=2))
    told: list[str] = []
    with packed_attention(model, say=told.append) as on:
        assert on, told
        packed = answer_logps(model, PACKED_ROWS, 0)[0]
    torch.testing.assert_close(packed, answer_logps(model, PACKED_ROWS, 0)[0], rtol=0.02, atol=0.05)


def test_a_batch_with_few_shared_tokens_stays_padded() -> None:
    """Without shared tokens, 10 of 10 and 9 of 10 tokens remain."""
    alike = torch.tensor([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]])
    assert pack(alike, torch.ones_like(alike)) is None
    line = pack(alike, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]))
    assert line is not None
    assert line.tokens.shape == (1, 9)


class Stubborn(nn.Module):
    """Rotary embedding that counts positions along the pack and ignores position_ids."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor, position_ids: Tensor) -> Any:
        counted = torch.arange(position_ids.shape[1], device=position_ids.device)[None].expand_as(position_ids)
        return self.inner(states, counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_position_ids_stays_padded(dtype: torch.dtype) -> None:
    model = tiny_model(tiny_tokenizer(), seed=3).to(dtype)
    for value in model.parameters():
        value.data *= 4  # otherwise the attention of a tiny model is nearly uniform, and positions have little effect
    told: list[str] = []
    with packed_attention(model, say=told.append) as on:
        assert on, told
    model.model.rotary_emb = Stubborn(model.model.rotary_emb)
    with packed_attention(model, say=told.append) as on:
        assert not on
    assert told == [told[0]]
    assert "gives different logits for packed rows" in told[0]


def test_a_recurrent_model_stays_padded() -> None:
    model = model_of(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8), "eager")
    told: list[str] = []
    with packed_attention(model, say=told.append) as on:
        assert not on
        assert not packs(model, 8)
    assert "padded, not packed" in told[0]


def test_rows_longer_than_the_window_stay_padded() -> None:
    """Windows depend on positions within a row, not in the pack: a row of 25 tokens does not fit into 24; 0 means no window."""
    unlimited = model_of(MistralConfig(**SMALL, sliding_window=None), "sdpa")
    with packed_attention(unlimited):
        unlimited.config.sliding_window = 0
        assert packs(unlimited, 25)
    model = model_of(MistralConfig(**SMALL, sliding_window=24), "sdpa")
    long = collate([*PACKED_ROWS, Encoded("g", tuple(range(1, 26)), 2)], 0)
    padded = [score_answers(model, batch).token_logps for batch in (long, collate(PACKED_ROWS, 0))]
    with packed_attention(model) as on:
        assert on
        assert packs(model, 24)
        assert not packs(model, 25)
        assert torch.equal(score_answers(model, long).token_logps, padded[0])
        inside = score_answers(model, collate(PACKED_ROWS, 0)).token_logps
    torch.testing.assert_close(inside, padded[1], rtol=0, atol=1e-5)


def test_padded_batches_and_generation_work_inside_and_the_model_is_restored() -> None:
    model = tiny_model(tiny_tokenizer(), seed=3)
    chosen = model.config._attn_implementation
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with packed_attention(model):
            torch.testing.assert_close(model(input_ids=ids).logits, expected)
            assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)
    assert model.config._attn_implementation == chosen
    with pytest.raises(KeyError, match="on purpose"), packed_attention(model):
        raise KeyError("on purpose")
    assert model.config._attn_implementation == chosen
    assert not packs(model, 4)


def test_a_kernel_without_mask_support_stays_padded() -> None:
    model = copy.deepcopy(tiny_model(tiny_tokenizer()))
    model.config._attn_implementation = "flash_attention_2"
    told: list[str] = []
    with packed_attention(model, say=told.append) as on:
        assert not on
    assert "attention is flash_attention_2" in told[0]
    assert model.config._attn_implementation == "flash_attention_2"
    with packed_attention(model, wanted=False, say=told.append) as on:
        assert not on
    assert len(told) == 1, "nothing to say where padding was asked for"


def test_one_measurement_pass_packed_and_padded() -> None:
    model = adapted()
    padded = answer_logps(model, PACKED_ROWS, 0)
    with packed_attention(model):
        packed = answer_logps(model, PACKED_ROWS, 0)
    for mine, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "dtype", "close"),
    [
        ("npo", "float32", 1e-4),
        ("dpo", "float32", 1e-4),
        ("rmu", "float32", 1e-4),
        ("undial", "float32", 1e-4),
        ("npo", "bfloat16", 0.1),
    ],
)
def test_packed_and_padded_runs_are_equal(
    method: str, dtype: str, close: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the loss of every step, for methods on log-probs, a second answer, hidden states and reference logits."""
    import json

    from llm_forget.train.unlearn import unlearn

    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for part in ("forget", "retain"):
        rows = [{"question": f"{part} {row}?", "answer": f"the {part} one " * (1 + row % 3)} for row in range(6)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "model": {"name": str(tmp_path / "model"), "dtype": dtype},
        "data": {part: {"path": str(tmp_path / f"{part}.jsonl")} for part in ("forget", "retain")},
        "method": {"name": method},
        "stop": {"forget_target": None, "utility_floor": 0.0, "rows": 3},
    }
    lines: list[bool] = []
    model_packs = packs
    monkeypatch.setattr(
        "llm_forget.model.logprobs.packs", lambda model, size: lines.append(found := model_packs(model, size)) or found
    )
    losses = []
    for on in (True, False):
        lines.clear()
        train = {"epochs": 3, "batch_size": 3, "learning_rate": 1e-3, "packing": on}
        run = {**values, "train": train, "output_dir": str(tmp_path / f"run-{on}")}
        unlearn(build(UnlearnRecipe, run, "test"))
        rows = [json.loads(line) for line in (tmp_path / f"run-{on}" / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
        assert len(lines) > 6
        assert set(lines) == {on}
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=close)
