"""Rows with shared prefixes, and what a model makes of them, packed or padded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.logprobs import score_answers
from llm_forget.model.packing import packed_attention

# All rows share a system turn: a question with two answers, a row that is a prefix of another, and a repeated row.
SYSTEM = (11, 12, 13, 14)
PACKED_ROWS = [
    Encoded("a", (*SYSTEM, 5, 9, 3, 8, 8, 1), 7),
    Encoded("b", (*SYSTEM, 5, 9, 3, 2, 1), 7),
    Encoded("c", (*SYSTEM, 6, 4, 4, 6, 1, 2, 3, 4, 5, 1), 9),
    Encoded("d", (*SYSTEM, 6, 4, 4), 5),
    Encoded("e", (*SYSTEM, 5, 9, 3, 2, 1), 7),
    Encoded("f", (7, 2), 1),
]


def scores_and_gradient(model: nn.Module, *, is_packed: bool, **batch: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    with torch.enable_grad():
        if is_packed:
            with packed_attention(model) as on:
                assert on
                scores = score_answers(model, collate(PACKED_ROWS, 0), **batch)
                (scores.mean_logps * torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, 1.0])).sum().backward()
        else:
            scores = score_answers(model, collate(PACKED_ROWS, 0), **batch)
            (scores.mean_logps * torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, 1.0])).sum().backward()
    gradients = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    return scores.token_logps.detach(), torch.cat(gradients).clone()
