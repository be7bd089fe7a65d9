"""Test flex attention of packed rows against attention over gathered rows. The kernel runs uncompiled here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import PACKED_ROWS, scores_and_gradient
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from llm_forget.data.collate import collate
from llm_forget.model import flex as module
from llm_forget.model.flex import block_mask, difference, flex, sees
from llm_forget.model.layout import pack
from llm_forget.model.logprobs import score_answers
from llm_forget.model.packing import _by_row, packed_attention

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "llama, 3 heads to a key": LlamaConfig(**SMALL, num_attention_heads=6, num_key_value_heads=2),
    "qwen2, 2 heads to a key": Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2),
    "llama, no sharing": LlamaConfig(**SMALL, num_attention_heads=4),
}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Use flex attention on the CPU, uncompiled, also for short rows; returns the shape of the queries of each call.

    torch refuses backward there because it compiles none; uncompiled it has one.
    """
    calls: list[tuple[int, ...]] = []

    def counted(query: Tensor, *states: Tensor, **how: Any) -> Tensor:
        calls.append(tuple(query.shape))
        out: Tensor = torch_flex.flex_attention(query, *states, **how)
        return out

    monkeypatch.setattr(module, "_DEVICES", ("cpu",))
    monkeypatch.setattr(module, "_LONG", 1)
    monkeypatch.setattr(module, "_kernel", lambda: counted)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return calls


def model_of(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32, attn_implementation=attention).eval()


def layout_of(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    line = pack(ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]), worth=1.0)
    assert line is not None
    return line.layout


def pairs(count: int, mask_mod: Callable[..., Tensor]) -> Tensor:
    """(N, N) bool, queries by keys."""
    place = torch.arange(count)
    return mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_token_sees_itself_and_what_stands_before_it_in_its_row(rows: list[list[int]]) -> None:
    layout = layout_of(rows)
    count = len(layout["until"])
    expected = torch.zeros(count, count, dtype=torch.bool)
    for queries, keys, mask in zip(layout["queries"], layout["keys"], layout["mask"][:, 0], strict=True):
        for query, allowed in zip(queries.tolist(), mask, strict=True):
            expected[query, keys[allowed]] |= query == int(keys[allowed][-1])  # padding repeats token 0
    assert torch.equal(pairs(count, sees(layout["until"])), expected)


def long_rows() -> list[list[int]]:
    """Rows of several blocks, with prefixes that end inside a block, at its end, and rows of one block or less."""
    first = [(7 * place) % 61 for place in range(300)]
    return [
        first,
        [*first[:256], *range(70, 75)],
        [*first[:140], 62, *first[:200]],
        [63] * 128,
        [64],
        [*first[:140], 65],
    ]


@pytest.mark.parametrize("rows", [long_rows(), [[1] * 128], [[1] * 129, [1, 2]], [[5]]])
def test_blocks_are_those_of_torch(rows: list[list[int]]) -> None:
    until = layout_of(rows)["until"]
    found = block_mask(until)
    expected = torch_flex.create_block_mask(sees(until), None, None, len(until), len(until), device="cpu")
    assert found.shape == expected.shape
    for part in ("kv", "full_kv", "q", "full_q"):
        counts = [getattr(one, f"{part}_num_blocks") for one in (found, expected)]
        indices = [getattr(one, f"{part}_indices") for one in (found, expected)]
        assert torch.equal(*counts), part
        used = torch.arange(indices[0].shape[-1]) < counts[0][..., None]
        assert torch.equal(indices[0][used], indices[1][used]), part
    if len(rows) > 3:
        assert found.full_kv_num_blocks.sum() > 0
        assert found.sparsity() > 50, "more than half of the pairs of blocks are left out"


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("heads", "few"), [(4, 4), (4, 2), (6, 2)])
def test_outputs_and_gradients_are_those_of_gathered_rows(heads: int, few: int) -> None:
    layout = layout_of(long_rows())
    count = len(layout["until"])
    made = torch.Generator().manual_seed(0)
    states = [torch.randn(1, some, count, 16, generator=made, dtype=torch.float64) for some in (heads, few, few)]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """By the definition, with a mask over all pairs that is read off the rows."""
        key, value = (one.repeat_interleave(heads // few, 1) for one in (key, value))
        scores = (query @ key.mT * 0.3).masked_fill(~pairs(count, sees(layout["until"])), -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2)

    def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **more: Any) -> tuple[Tensor, None]:
        key, value = (one.repeat_interleave(heads // few, 1) for one in (key, value))
        out = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
        return out.transpose(1, 2), None

    def gathered(*given: Tensor) -> Tensor:
        return _by_row(kernel, dict(layout), {}, *given)

    mask = block_mask(layout["until"])
    assert difference(states, gathered, plain) < 1e-12
    assert difference(states, lambda *given: flex(*given, mask, 0.3), gathered) < 1e-6
    assert difference(states, lambda *given: flex(*given, mask, 0.4), gathered) > 1e-2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_scores_and_gradients_of_a_model(name: str, checkpointed: bool, on_cpu: list[tuple[int, ...]]) -> None:
    model = model_of(name)
    if checkpointed:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    padded, expected = scores_and_gradient(model, is_packed=False)
    assert not on_cpu
    packed, found = scores_and_gradient(model, is_packed=True)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    heads = MODELS[name].num_attention_heads
    # the trial of the first block, and each block once or, checkpointed, twice
    assert on_cpu == [(1, heads, 24, 48 // heads)] * (5 if checkpointed else 3)


def test_under_autocast_states_have_one_dtype(on_cpu: list[tuple[int, ...]]) -> None:
    model = model_of("llama, 3 heads to a key")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        padded = score_answers(model, collate(PACKED_ROWS, 0)).token_logps
        with packed_attention(model):
            packed = score_answers(model, collate(PACKED_ROWS, 0)).token_logps
    assert len(on_cpu) == 3
    torch.testing.assert_close(packed, padded, rtol=0.02, atol=0.05)


def shifted(until: Tensor) -> Callable[..., Tensor]:
    """A mask that lets every row see all earlier ones."""
    return lambda batch, head, query, key: key <= query


def broken(until: Tensor) -> Callable[..., Tensor]:
    raise RuntimeError("cannot be compiled")


@pytest.mark.parametrize(("mask_mod", "reason"), [(shifted, "differs by"), (broken, "RuntimeError")])
def test_other_numbers_or_an_error_are_found_and_said_once(
    mask_mod: Any, reason: str, on_cpu: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "sees", mask_mod)
    model = model_of("qwen2, 2 heads to a key")
    padded = score_answers(model, collate(PACKED_ROWS, 0)).token_logps
    said: list[str] = []
    with packed_attention(model, say=said.append) as on:
        assert on
        for _ in range(2):
            packed = score_answers(model, collate(PACKED_ROWS, 0)).token_logps
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)
    assert len(on_cpu) <= 1
    assert len(said) == 1
    assert reason in said[0]
    assert "packed rows are gathered instead" in said[0]


@pytest.mark.parametrize(
    ("value", "asked"), [(None, False), (0.0, False), (False, False), (30.0, True), (torch.zeros(4), True)]
)
def test_an_argument_that_asks_for_more(value: object, asked: bool) -> None:
    """Sinks are a tensor, whose truth is not defined."""
    assert module._asked(value) is asked


@pytest.mark.slow
def test_what_it_is_not_for(on_cpu: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention, windows, selective checkpointing, short rows, and a CPU."""
    from llm_forget.model.checkpointing import checkpointing_arguments

    window = MistralConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, sliding_window=24)
    torch.manual_seed(0)
    selective = model_of("llama, no sharing").train()
    selective.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_arguments("selective"))
    for model in (
        model_of("llama, no sharing", "eager"),
        AutoModelForCausalLM.from_config(window, dtype=torch.float32, attn_implementation="sdpa"),
        selective,
    ):
        scores_and_gradient(model, is_packed=True)
    for name, value in (("_LONG", 15), ("_DEVICES", ("cuda",))):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, value)
            scores_and_gradient(model_of("llama, no sharing"), is_packed=True)
    assert not on_cpu
    scores_and_gradient(model_of("llama, no sharing"), is_packed=True)
    assert on_cpu
