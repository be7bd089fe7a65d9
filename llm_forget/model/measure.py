"""Measure the answer probability of a sample of rows, for the stop rule and the strength search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.model.limits import check_rows
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like
from llm_forget.scores import AnswerScores
from llm_forget.stop import Measurement, match

_BATCH_TOKENS = 2048  # large enough to fill a core's matrix units, small enough for the logits of its answers


class SampleMeter:
    """Measures a model on a fixed sample of the forget rows and of the rows to keep.

    Args:
        forget: rows to forget.
        retain: rows to keep; may be empty.
        pad_token_id: the padding token.

    Attributes:
        targets: the mean log-prob per answer token that each forget row should reach, in nats; None without row targets.
        tolerance: how near the rows must come to them, as a multiple of the usual.
        seen: called with the forget rows' mean log-probs after every measurement.
        neighbours: rows with a floor of their own; empty for none.
    """

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded], pad_token_id: int) -> None:
        self.forget, self.retain, self.pad_token_id = forget, retain, pad_token_id
        self.targets: Sequence[float] | None = None
        self.tolerance = 1.0
        self.seen: Callable[[Tensor], None] = lambda _: None
        self.neighbours: Sequence[Encoded] = ()

    def __call__(self, model: Any, step: int) -> Measurement:
        """The mean answer probability of both samples after ``step`` optimizer steps, and the match with the row targets."""
        return self.of(model, step, self.probabilities(model, self.forget))

    def of(self, model: Any, step: int, forget: Tensor) -> Measurement:
        """The measurement for forget rows whose probabilities (n,) are known; it scores only the rows to keep."""
        retain = float(self.probabilities(model, self.retain).mean()) if self.retain else None
        found = None
        if self.targets is not None:
            found = match(forget.log().tolist(), self.targets, self.tolerance)
            self.seen(forget.log())
        near = float(self.probabilities(model, self.neighbours).mean()) if self.neighbours else None
        return Measurement(step, float(forget.mean()), retain, found, near)

    def probabilities(self, model: Any, rows: Sequence[Encoded]) -> Tensor:
        """exp(mean answer log-prob) of each row, (n,)."""
        return answer_logps(model, rows, self.pad_token_id)[1]


def refuse_not_finite(values: Iterable[float | None]) -> None:
    """Refuse a model whose answers have no finite probability before the first step.

    Args:
        values: probabilities of the untrained model; None if there was nothing to measure.

    Raises:
        RecipeError: one of them is NaN or infinite.
    """
    if not all(value is None or math.isfinite(value) for value in values):
        raise RecipeError(
            "the model's answers have no finite probability before the first step, so it cannot be trained: its weights hold NaN "
            "or infinity, or model.dtype or model.adapter overflows. Give a sound copy of the model, or set model.dtype: float32"
        )


def answer_logps(model: nn.Module, rows: Sequence[Encoded], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Score rows without gradients or dropout. With several processes, each process scores all rows.

    Returns:
        Summed log-probs (n,) in nats and probabilities exp(mean log-prob) (n,), on the CPU, in the order of the rows.

    Raises:
        DataError: the model cannot read a row.
    """
    logps, probabilities = torch.zeros(len(rows)), torch.zeros(len(rows))
    for indices, scores in scored_batches(model, rows, pad_token_id):
        logps[indices] = scores.logps.float().cpu()
        probabilities[indices] = scores.mean_logps.exp().float().cpu()
    return logps, probabilities


def scored_batches(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, *, keep_logits: bool = False
) -> Iterator[tuple[list[int], AnswerScores]]:
    """Score rows without gradients or dropout, in batches of similar length under a token budget, which keeps padding small.

    Args:
        model: a causal language model.
        rows: the rows.
        pad_token_id: the padding token.
        keep_logits: also keep the answers' logits.

    Yields:
        The rows' indices, and their scores.

    Raises:
        DataError: the model cannot read a row.
    """
    check_rows(model, rows, "measured")
    training = model.training
    model.eval()
    try:
        yield from _batches(model, rows, pad_token_id, keep_logits)
    finally:
        model.train(training)


def _batches(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, keep_logits: bool
) -> Iterator[tuple[list[int], AnswerScores]]:
    device = next(model.parameters()).device
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    while by_length:
        width = len(rows[by_length[-1]].input_ids)
        take = max(1, _BATCH_TOKENS // width)
        indices, by_length = by_length[-take:], by_length[:-take]
        batch = {k: v.to(device) for k, v in collate([rows[index] for index in indices], pad_token_id).items()}
        with torch.no_grad(), autocast_like(model):
            yield indices, score_answers(model, batch, keep_logits=keep_logits)
