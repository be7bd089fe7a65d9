"""Log-probabilities of a batch's answer tokens. Only this module shifts labels and applies masks for the training losses.

It needs one forward pass. The language-model head runs only on positions that predict an answer token, not on prompt or
padding. Results are ``(B, A)``: one row per answer, A is the longest answer of the batch. So a loss reads like its formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.head import (
    HeadUse,
    below_wrapper,
    chunk_rows,
    head_gives_logps,
    head_reads_only,
    head_use,
)
from llm_forget.model.layout import Packed, model_inputs, pack
from llm_forget.model.lower import LowerStates, lower_states
from llm_forget.model.packing import packs
from llm_forget.model.rope import rope_by_row
from llm_forget.model.structure import line_limit
from llm_forget.model.targets import config_depth
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class Part:
    """A slice of the batch, and the scores to keep for it.

    Attributes:
        rows: the slice.
        logits: keep the logits of its answers.
        hidden: keep the hidden states that predict its answers.
    """

    rows: slice
    logits: bool = False
    hidden: bool = False


def answer_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits that predict the answer tokens, (N, V), rows in the order of ``batch["answer_mask"].nonzero()``.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``answer_mask`` (B, T), right-padded.
    """
    return _forward(model, batch, None)[0]


def _forward(model: nn.Module, batch: dict[str, Tensor], layer: int | None) -> tuple[Tensor, Tensor | None]:
    """Logits (N, V), and the hidden states (N, H) after block ``layer``, at positions that predict answer tokens."""
    predicts_answer = torch.zeros_like(batch["answer_mask"])
    predicts_answer[:, :-1] = batch["answer_mask"][:, 1:]
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions: Tensor | tuple[int, Tensor] = predicts_answer
    line = _line_of(model, batch)
    if line is not None:
        inputs, positions = model_inputs(line), (0, line.place[predicts_answer])
    more = {} if layer is None else {"output_hidden_states": True}
    with _known_below(model, batch, line, layer), rope_by_row(model, batch["attention_mask"]) as own:
        logits, output = _logits_at(model, positions, **{**own, **inputs}, **more)
    # hidden_states[0] is the output of the embeddings
    return logits, None if layer is None else output.hidden_states[layer + 1][positions].float()


@contextmanager
def _known_below(model: nn.Module, batch: dict[str, Tensor], line: Packed | None, layer: int | None) -> Iterator[None]:
    """In this context the model's pass over the batch begins at its first trained block, if it holds states below it.

    A pass that reads hidden states of a lower ``layer`` computes all blocks.
    """
    lower = lower_states(model)
    if lower is None or (layer is not None and layer < lower.first):
        yield
        return
    rows = lower.of(batch, partial(_lower_pass, model, lower))
    if line is None:
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        states = nn.functional.pad(states, (0, 0, 0, batch["input_ids"].shape[1] - states.shape[1]))
    else:
        states = rows[0].new_zeros(1, line.tokens.shape[1], rows[0].shape[-1])
        for place, row in zip(line.place, rows, strict=True):
            states[0, place[: len(row)]] = row  # a shared prefix has the same states in every row
    with lower.given(states):
        yield


def _lower_pass(model: nn.Module, lower: LowerStates, rows: dict[str, Tensor]) -> Tensor:
    """The states (B, T, H) of rows below the first trained block."""
    line = _line_of(model, rows)
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")} if line is None else model_inputs(line)
    with rope_by_row(model, rows["attention_mask"]) as own:
        states = lower.reached(partial(below_wrapper(model), **{**own, **inputs}, use_cache=False))
    return states if line is None else states[0, line.place]


def _line_of(model: nn.Module, batch: dict[str, Tensor]) -> Packed | None:
    """The batch in one sequence, or None if it stays padded."""
    if not packs(model, batch["input_ids"].shape[1]):
        return None
    line, limit = pack(batch["input_ids"], batch["attention_mask"]), line_limit(below_wrapper(model).config)
    return None if line is not None and limit is not None and line.tokens.shape[1] > limit else line


def logits_at(model: nn.Module, positions: Tensor, **inputs: Tensor) -> Tensor:
    """The logits at some positions, (N, V), rows in the order of ``positions.nonzero()``. The head runs only on these.

    Args:
        model: a causal language model, wrapped or not.
        positions: (B, T) bool.
        inputs: the model's inputs: ``input_ids`` (B, T), ``attention_mask``, ``position_ids``.
    """
    return _logits_at(model, positions, **inputs)[0]


def _logits_at(model: nn.Module, positions: Tensor | tuple[int, Tensor], **inputs: Any) -> tuple[Tensor, Any]:
    """The logits (N, V) at some positions, and the model's output."""
    if head_use(model) is HeadUse.WHOLE:
        output = model(**inputs, use_cache=False)
        return output.logits[positions], output
    with head_reads_only(model, positions):
        output = model(**inputs, use_cache=False)
    return output.logits, output


def score_answers(model: nn.Module, batch: dict[str, Tensor], *, keep_logits: bool = False) -> AnswerScores:
    """Score every answer of a batch in one forward pass.

    Args:
        model: a causal language model, wrapped or not; gradients flow if they are enabled.
        batch: ``input_ids`` (B, T) right-padded, ``attention_mask`` (B, T), ``answer_mask`` (B, T) True at answer tokens.
        keep_logits: also return the answers' logits (B, A, V).
    """
    return score_parts(model, batch, [Part(slice(None), logits=keep_logits)])[0]


def score_parts(
    model: nn.Module, batch: dict[str, Tensor], parts: Sequence[Part], *, layer: int | None = None
) -> list[AnswerScores]:
    """Score the answers of several groups of rows in one forward pass, and keep only the scores that each group's loss needs.

    Args:
        model: a causal language model, wrapped or not; gradients flow if they are enabled.
        batch: as for ``score_answers``.
        parts: the groups, as consecutive slices.
        layer: the block, counted from 0, whose output is kept as hidden states. For the last block, the final norm is included.
    """
    answer_mask = batch["answer_mask"].clone()
    answer_mask[:, 0] = False  # no position predicts the first token
    targets = batch["input_ids"][answer_mask]
    size = None if any(part.logits for part in parts) else chunk_rows(model, len(targets))
    with nullcontext() if size is None else head_gives_logps(model, targets, size):
        logits, hidden = _forward(model, {**batch, "answer_mask": answer_mask}, layer)
    logits = logits.float()
    flat_logps = logits.squeeze(-1)
    if size is None:
        flat_logps = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)

    scores = []
    for part in parts:
        mask = left_align(answer_mask[part.rows])
        first = int(answer_mask[: part.rows.start or 0].sum())
        flat = slice(first, first + int(mask.sum()))
        scores.append(
            AnswerScores(
                token_logps=scatter_rows(flat_logps[flat], mask),
                mask=mask,
                tokens=scatter_rows(targets[flat], mask),
                logits=scatter_rows(logits[flat], mask) if part.logits else None,
                hidden=scatter_rows(hidden[flat], mask) if part.hidden and hidden is not None else None,
            )
        )
    return scores


def hidden_layer(model: nn.Module, layer: int | None) -> int:
    """The block whose output serves as hidden states: ``layer``, or by default the block at 7/32 of the depth.

    RMU's authors steer block 7 of 32 in a 7B model (arXiv:2403.03218). Other models use the same relative depth.

    Raises:
        ValueError: the model has no such block.
    """
    depth = config_depth(below_wrapper(model).config)
    chosen = round(7 / 32 * depth) if layer is None else layer
    if chosen >= depth:
        raise ValueError(f"layer is {layer}; give a block of this model, from 0 to {depth - 1}")
    return chosen


def left_align(answer_mask: Tensor) -> Tensor:
    """(B, T) mask of answer positions → (B, A) mask with its True entries first; A is the longest answer."""
    lengths = answer_mask.sum(-1)
    longest = max(int(lengths.max()), 1)
    return torch.arange(longest, device=answer_mask.device)[None, :] < lengths[:, None]


def scatter_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """(N, …) values in row order → (B, A, …), with zeros where ``mask`` (B, A) is False. Differentiable."""
    return place_rows(flat, mask.flatten().nonzero().squeeze(-1), mask.shape)


def place_rows(flat: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, …) values at ``places`` (N,) of the flattened ``shape`` (B, A), with zeros elsewhere. Differentiable.

    It uses indices, because torch would expand a mask over (N, V) logits to eight bytes per element.
    """
    padded = flat.new_zeros((math.prod(shape), *flat.shape[1:]))
    return padded.index_copy_(0, places, flat).view(*shape, *flat.shape[1:])
