"""The matrix of architectures: packed, padded and single rows agree, and memory is planned, for a tiny model of each type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from architectures import TYPES, tiny, tiny_config
from torch import Tensor, nn

from llm_forget.config import UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.memory.plan import plan
from llm_forget.model.logprobs import score_answers
from llm_forget.model.packing import packed_attention
from llm_forget.model.weights import autocast_like
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.build import build

pytestmark = pytest.mark.slow
KINDS = pytest.mark.parametrize("kind", TYPES)
# Types whose batches stay padded: recurrent layers, ALiBi, or attention that takes no mask of another shape.
_PADDED = (
    "bamba bloom codegen doge falcon falcon_h1 falcon_mamba gpt_neo gptj granitemoehybrid jamba lfm2 mamba mamba2 minimax mpt "
    "nemotron nemotron_h openai-gpt qwen3_next recurrent_gemma rwkv stablelm xglm xlstm"
)
PADDED = frozenset(_PADDED.split())


def rows() -> list[Encoded]:
    """Rows of 6 to 40 tokens with shared prefixes, an identical row, and answers of one token."""
    first = [(7 * place + 3) % 250 for place in range(40)]
    other = [(11 * place + 1) % 250 for place in range(30)]
    tokens = [(first, 20), (first[:24] + other[:9], 24), (other[:6], 5), (first[:24] + other[:9], 24), (other, 12)]
    return [Encoded(str(place), tuple(ids), prompt) for place, (ids, prompt) in enumerate(tokens)]


def log_probs(model: nn.Module, given: Sequence[Encoded]) -> Tensor:
    with autocast_like(model):
        scores = score_answers(model, collate(given, 0))
    return scores.token_logps[scores.mask]


def in_one_batch(model: nn.Module) -> Tensor:
    return log_probs(model, rows())


def one_by_one(model: nn.Module) -> Tensor:
    return torch.cat([log_probs(model, [row]) for row in rows()])


def with_gradients(model: nn.Module, scores: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor]:
    """The log-probs, and the gradient of a weighted sum of them for all weights."""
    model.zero_grad()
    found = scores(model)
    (found * torch.linspace(0.5, 1.5, len(found))).sum().backward()
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in model.parameters()]
    return found.detach().float(), torch.cat([value.flatten().float() for value in gradients])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@KINDS
def test_packed_padded_and_single_rows_agree(kind: str) -> None:
    """Log-probs to 1e-5 and gradients to 1e-4 in fp32; in bf16 packed rows are as far from single ones as padded rows are."""
    model = tiny(kind, tiny_tokenizer(), spread=3.0)
    alone, slope = with_gradients(model, one_by_one)
    padded, padded_slope = with_gradients(model, in_one_batch)
    assert padded.sub(alone).abs().max() < 1e-5
    assert relative(padded_slope, slope) < 1e-4
    with packed_attention(model) as active:
        assert active == (kind not in PADDED)
        packed, packed_slope = with_gradients(model, in_one_batch)
    assert packed.sub(alone).abs().max() < 1e-5
    assert relative(packed_slope, slope) < 1e-4

    model = model.to(torch.bfloat16)
    alone, slope = with_gradients(model, one_by_one)
    padded, padded_slope = with_gradients(model, in_one_batch)
    with packed_attention(model) as active:
        assert active <= (kind not in PADDED)
        packed, packed_slope = with_gradients(model, in_one_batch)
    assert packed.sub(alone).abs().mean() <= 3 * padded.sub(alone).abs().mean()
    assert relative(packed_slope, slope) <= 3 * relative(padded_slope, slope)


@pytest.mark.parametrize("kind", sorted({"jetmoe", *list(TYPES)[::6]}))
def test_memory_is_planned(kind: str) -> None:
    tokenizer = tiny_tokenizer()
    values = {"model": {"name": "a/b", "dtype": "float32"}, "data": {"forget": {"path": "f"}}, "output_dir": "o"}
    values |= {"method": {"name": "npo"}, "adapter": {"rank": 2, "alpha": 2}}
    recipe, config = build(UnlearnRecipe, values, "test"), tiny_config(kind, tokenizer)
    if kind == "jetmoe":  # its experts read the number of their tokens
        with pytest.raises(RecipeError, match="this jetmoe model cannot be planned"):
            plan(recipe, on_card=False, tokens=32, model_config=config)
        return
    found = plan(recipe, on_card=False, tokens=32, model_config=config)
    stored = sum(value.nbytes for value in tiny(kind, tokenizer).parameters())
    assert stored <= found.weights <= 1.5 * stored, "parameters and buffers"
    assert min(found.adapter, found.activations) > 0
