"""Test that a mixture of experts never computes its router loss, which is in no objective and refuses the mask of packed rows."""

from __future__ import annotations

import pytest
from architectures import tiny

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.batching import evaluating
from llm_forget.model.experts import without_router_loss
from llm_forget.model.logprobs import score_answers
from llm_forget.model.packing import packed_attention
from llm_forget.testing import tiny_tokenizer

ROWS = [Encoded("a", tuple(range(20)), 8), Encoded("b", (*range(15), 40, 41), 8), Encoded("c", (7, 8, 9), 1)]


@pytest.mark.parametrize("kind", ["qwen2_moe", "mixtral", "gpt_oss"])
def test_rows_are_packed_although_the_checkpoint_asks_for_the_router_loss(kind: str) -> None:
    model = tiny(kind, tiny_tokenizer(), output_router_logits=True, router_aux_loss_coef=0.5)
    with evaluating(model):
        padded = score_answers(model, collate(ROWS, 0)).token_logps
    with without_router_loss(model), packed_attention(model) as active:
        assert active
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.0  # as TRL does for its trainer
        with without_router_loss(model):
            packed = score_answers(model, collate(ROWS, 0)).token_logps
    assert (model.config.output_router_logits, model.config.router_aux_loss_coef) == (True, 0.5), "as it was"
    assert (packed - padded).abs().max() < 1e-5
