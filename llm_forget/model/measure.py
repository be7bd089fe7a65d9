"""How likely a model finds the answers of a set: the one number that stop rules and strength searches look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like
from llm_forget.scores import AnswerScores

_BATCH_TOKENS = 2048  # large enough to fill a core's matrix units, small enough for the logits of its answers


def answer_logps(model: nn.Module, rows: Sequence[Encoded], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Score rows without gradient and without dropout; under several processes each scores them all.

    Returns:
        Summed log-probs (n,) in nats and probabilities exp(mean log-prob) (n,), on the CPU, in the order of the rows.
    """
    logps, probabilities = torch.zeros(len(rows)), torch.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        for indices, scores in _batches(model, rows, pad_token_id):
            logps[indices] = scores.logps.float().cpu()
            probabilities[indices] = scores.mean_logps.exp().float().cpu()
    finally:
        model.train(training)
    return logps, probabilities


def _batches(model: nn.Module, rows: Sequence[Encoded], pad_token_id: int) -> Iterator[tuple[list[int], AnswerScores]]:
    """Batches of like length, by a budget of tokens, so that little is spent on padding."""
    device = next(model.parameters()).device
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    while by_length:
        width = len(rows[by_length[-1]].input_ids)
        take = max(1, _BATCH_TOKENS // width)
        indices, by_length = by_length[-take:], by_length[:-take]
        batch = {k: v.to(device) for k, v in collate([rows[index] for index in indices], pad_token_id).items()}
        with torch.no_grad(), autocast_like(model):
            yield indices, score_answers(model, batch)
