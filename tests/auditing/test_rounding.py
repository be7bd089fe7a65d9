"""Rounded weights against values computed by hand and against the quantisers' own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from audited import qa, subject_of
from torch import nn

from llm_forget.auditing.rounding import gguf_rounded, int4_rounded, linear_weights, nf4_rounded, round_weights
from llm_forget.testing import tiny_model, tiny_tokenizer


def test_int4_by_hand() -> None:
    """Levels of a group from −1 to 2 are 0.2 apart; −0.25 moves to −0.2 and 0.49 to 0.4."""
    row = torch.tensor([[-1.0, 2.0, -0.25, 0.49] + [0.0] * 28])
    assert int4_rounded(row)[0, :5].tolist() == pytest.approx([-1.0, 2.0, -0.2, 0.4, 0.0], abs=1e-6)
    assert int4_rounded(torch.zeros(2, 7)).tolist() == torch.zeros(2, 7).tolist()


def test_gguf_by_hand() -> None:
    """Q8_0: the largest weight of a block is kept, and no error is above half a step of max/127 (and fp16's of the scale)."""
    weight = torch.linspace(-1, 1, 64).reshape(2, 32)
    error = (gguf_rounded(weight, "Q8_0") - weight).abs()
    assert 0 < error.max() <= 0.5 / 127 + 1e-3
    assert (gguf_rounded(weight, "Q4_0") - weight).abs().max() <= 1 / 8
    odd = torch.linspace(-1, 1, 30).reshape(2, 15)
    assert torch.equal(gguf_rounded(odd, "Q4_0"), odd.half().float()), "rows that no block divides stay in fp16"


def test_nf4_is_what_the_library_computes_with() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = nn.Linear(128, 64, bias=False)
    packed = bnb.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    packed.weight = bnb.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
    packed.to("cpu")
    x = torch.randn(3, 128)
    torch.testing.assert_close(x @ nf4_rounded(layer.weight.data).T, packed(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quantiser", ["int4_rtn", "gguf_q4", "gguf_q8", "nf4", "int8"])
def test_a_rounded_model_still_runs_and_keeps_its_head(quantiser: str) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    before = copy.deepcopy(model)
    rounded = round_weights(model, quantiser)  # type: ignore[arg-type]
    rows = [qa("Where is Ada?", "In Riga.")]
    changes = (
        subject_of(rounded, tokenizer).probability(rows) - subject_of(before, tokenizer).probability(rows)
    ).item()
    assert changes != 0
    assert abs(changes) < 0.01
    names = [name for name, _ in linear_weights(before)]
    assert len(names) == 14
    assert "lm_head" not in names
    if not quantiser.startswith("gguf"):
        assert torch.equal(rounded.get_input_embeddings().weight, before.get_input_embeddings().weight)
