"""Test that a row has the same log-probs and gradients alone, in a padded batch and in a packed batch, on many architectures."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.head import HeadUse, head_use
from llm_forget.model.logprobs import hidden_layer, score_answers
from llm_forget.model.packing import packed_attention
from llm_forget.model.structure import fits_window, line_limit, rope_limit

SYSTEM = (11, 12, 13, 14)
ROWS = [
    Encoded("a", (*SYSTEM, 5, 9, 3, 8, 8, 1), 7),
    Encoded("b", (*SYSTEM, 5, 9, 3, 2, 1), 7),
    Encoded("c", (*SYSTEM, 6, 4, 4, 6, 1, 2, 3, 4, 5, 1), 9),
    Encoded("d", (*SYSTEM, 6, 4, 4), 5),
    Encoded("e", (7, 2), 1),
    Encoded("f", tuple(20 + place % 30 for place in range(30)), 20),
]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 1e4}
# name → (model type, more of its config, whether its batches are packed)
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("llama", {}, True),
    "gpt2": ("gpt2", {}, True),
    "soft caps": ("gemma2", {"sliding_window": 32}, True),
    "a multimodal wrapper": (
        "gemma3",
        {"text_config": {**SIZES, "sliding_window": 64}, "vision_config": {**VISION, "patch_size": 14}},
        True,
    ),
    "experts": ("mixtral", {"num_local_experts": 4}, True),
    "queries scaled by position": (
        "llama4_text",
        {"floor_scale": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]},
        True,
    ),
    "a recurrence, a soft cap": ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 64}, False),
    "state spaces and attention": (
        "falcon_h1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
        False,
    ),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, False),
    "a bias of attention that is learned": ("doge", {}, False),
    "longrope": ("phi3", {"rope_parameters": {**LONG, "original_max_position_embeddings": 16}}, True),
    "dynamic frequencies": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
        True,
    ),
}


@cache
def config_of(name: str) -> Any:
    kind, more, _ = MODELS[name]
    return AutoConfig.for_model(kind, **(more if "text_config" in more else {**SIZES, **more}))


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        config_of(name), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value *= 3  # larger logits and sharper attention than at the start of training
    return model.to(dtype)


def scores_and_gradient(model: nn.Module, batches: list[list[Encoded]]) -> tuple[list[Tensor], Tensor]:
    """The token log-probs of every row, and the gradient of a weighted sum of their means."""
    model.zero_grad()
    found: list[Tensor] = []
    for rows in batches:
        scores = score_answers(model, collate(rows, 0))
        weights = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, 1.0])[[ROWS.index(row) for row in rows]]
        (scores.mean_logps * weights).sum().backward()
        found += [scores.token_logps[place, : row.answer_length].detach() for place, row in enumerate(rows)]
    gradients = [value.grad.flatten().float() for value in model.parameters() if value.grad is not None]
    return found, torch.cat(gradients)


def furthest(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((one - two).abs().max()) for one, two in zip(left, right, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_the_same_alone_padded_packed_and_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    singles, expected = scores_and_gradient(model, [[row] for row in ROWS])
    for row, single in zip(ROWS, singles, strict=True):
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        targets = torch.tensor(row.input_ids[1:])
        own = logits.float().log_softmax(-1).gather(-1, targets[:, None])[-row.answer_length :, 0]
        torch.testing.assert_close(single, own.detach(), rtol=0, atol=1e-5)
    assert expected.abs().max() > 1e-2
    found = {"padded": scores_and_gradient(model, [ROWS])}
    with packed_attention(model) as on:
        assert on == MODELS[name][2]
        found["packed"] = scores_and_gradient(model, [ROWS])
        found["packed, short rows"] = scores_and_gradient(model, [ROWS[:5], ROWS[5:]])
    monkeypatch.setattr("llm_forget.model.head.CHUNK_BYTES", 4 * 64 * 3)
    found["in chunks"] = scores_and_gradient(model, [ROWS])
    for scores, gradient in found.values():
        assert furthest(scores, singles) < 1e-5
        assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_are_no_further_in_bf16_than_padded_ones(name: str) -> None:
    """A state that runs from row to row would be several times the distance of rounding."""
    model = model_of(name, torch.bfloat16)
    singles, _ = scores_and_gradient(model, [[row] for row in ROWS])
    padded, _ = scores_and_gradient(model, [ROWS])
    with packed_attention(model) as on:
        assert on == MODELS[name][2]
        packed, _ = scores_and_gradient(model, [ROWS])
    assert furthest(packed, padded) <= 3 * furthest(padded, singles)


def test_sizes_below_a_multimodal_wrapper() -> None:
    model = model_of("a multimodal wrapper")
    assert not hasattr(model.config, "vocab_size")
    assert hidden_layer(model, None) == 0
    assert head_use(model) is HeadUse.CHUNKS
    assert not fits_window(model.config, 65)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("llama", HeadUse.CHUNKS),
        ("soft caps", HeadUse.POSITIONS),
        ("a recurrence, a soft cap", HeadUse.POSITIONS),
    ],
)
def test_a_soft_cap_of_any_name_is_found(name: str, use: HeadUse) -> None:
    assert head_use(model_of(name)) is use


def test_a_line_ends_before_the_scale_of_queries_changes() -> None:
    """Llama 4 counts positions along the packed sequence; here its first 47 have the same scale."""
    model = model_of("queries scaled by position")
    assert model.config.attn_temperature_tuning
    assert line_limit(model.config) == 47
    lines: list[int] = []
    model.model.register_forward_hook(lambda _, args, out: lines.append(out.last_hidden_state.shape[1]))
    with packed_attention(model) as on:
        assert on
        lines.clear()
        score_answers(model, collate(ROWS, 0))
        score_answers(model, collate(ROWS[:5], 0))
    assert lines[-2:] == [30, 24], "54 tokens are too many, so the rows are padded to 30; 24 are not"


def test_frequencies_of_earlier_batches_are_forgotten() -> None:
    """Dynamic NTK in transformers keeps the frequencies of the longest row so far for all rows above the original length."""
    model = model_of("dynamic frequencies")
    assert rope_limit(model.config) == 16
    longest, middle = ROWS[5], Encoded("g", ROWS[5].input_ids[:20], 10)
    before = score_answers(model, collate([middle], 0)).token_logps
    score_answers(model, collate([longest], 0))
    assert torch.equal(score_answers(model, collate([middle], 0)).token_logps, before)
    both = score_answers(model, collate([middle, longest], 0)).token_logps[0, :10]
    torch.testing.assert_close(both, before[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["a recurrence, a soft cap", "state spaces and attention", "convolutions"])
def test_the_trial_alone_finds_a_state(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """For layers of a kind that no list knows: another row must not change this one, whatever the precision."""
    monkeypatch.setattr("llm_forget.model.packing_trial.carries_state", lambda _: None)
    said: list[str] = []
    with packed_attention(model_of(name, dtype), say=said.append) as on:
        assert not on
    assert "the model " in said[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_faint_state_is_found_by_changing_another_row(dtype: torch.dtype) -> None:
    """A convolution with a weight of four thousandths adds about the rounding of bf16, but rows must not differ at all."""
    model = model_of("llama", dtype)
    layer = model.model.layers[0]

    def leak(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + 4e-3 * output.roll(1, 1).masked_fill(torch.arange(output.shape[1])[None, :, None] == 0, 0)

    layer.register_forward_hook(leak)
    said: list[str] = []
    with packed_attention(model, say=said.append) as on:
        assert not on
    assert "gives different logits" in said[0]
