"""From a batch to the log-probabilities of its answer tokens: the only code that shifts labels or reads masks.

One forward of the model, and the language-model head only on the positions that predict an answer token: prompt and padding
positions never touch the vocabulary. Results are laid out answer by answer, ``(B, A)`` with A the longest answer of the batch,
so that a loss reads like its formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.head import below_wrapper, chunk_rows, head_gives_logps, head_reads_only, output_head
from llm_forget.packing import model_inputs, pack, packs

__all__ = [
    "AnswerScores",
    "answer_logits",
    "kl_divergence",
    "left_align",
    "output_head",
    "scatter_rows",
    "score_answers",
]


@dataclass(frozen=True)
class AnswerScores:
    """What a loss or a metric may know about the answers of B examples (A = longest answer, V = vocabulary).

    Attributes:
        token_logps: (B, A) log-probability of each answer token in nats, 0 where ``mask`` is False.
        mask: (B, A) True where there is an answer token.
        tokens: (B, A) the answer tokens themselves, 0 where ``mask`` is False.
        logits: (B, A, V) the logits that predicted them, 0 where ``mask`` is False; only when asked for.
        reference_logps: (B,) summed log-probability under the reference, in nats; only when the loss needs it.
        reference_logits: (B, A, V) under the reference; only when the loss needs it.
        hidden: (B, A, H) the hidden states, after one of the blocks, at the positions that predicted the answer tokens; 0 where
            ``mask`` is False; only when asked for.
        reference_hidden: (B, A, H) under the reference; only when the loss needs it.
        alternative: the scores of another answer to each prompt; only when the loss needs it.
        alternative_tokens: (B, A′) the tokens of another answer to each prompt, unscored, −1 where there is none; only when the
            loss needs it.
    """

    token_logps: Tensor
    mask: Tensor
    tokens: Tensor
    logits: Tensor | None = None
    reference_logps: Tensor | None = None
    reference_logits: Tensor | None = None
    hidden: Tensor | None = None
    reference_hidden: Tensor | None = None
    alternative: AnswerScores | None = None
    alternative_tokens: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Answer tokens per example, (B,), at least 1 so that an unscored example gives 0 and not NaN in a loss."""
        return self.mask.sum(-1).clamp(min=1)

    @property
    def logps(self) -> Tensor:
        """Summed log-probability of each answer, (B,), in nats."""
        return self.token_logps.sum(-1)

    @property
    def mean_logps(self) -> Tensor:
        """Mean log-probability per answer token, (B,), in nats; its negative is the cross-entropy."""
        return self.token_logps.sum(-1) / self.lengths

    def rows(self, index: slice | Tensor) -> AnswerScores:
        """The scores of some of the examples."""

        def some(value: Tensor | AnswerScores | None) -> Tensor | AnswerScores | None:
            if isinstance(value, AnswerScores):
                return value.rows(index)
            return None if value is None else value[index]

        return AnswerScores(**{item.name: some(getattr(self, item.name)) for item in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Part:
    """Some rows of a batch, and what is kept of their scores.

    Attributes:
        rows: which.
        logits: keep the logits of their answers.
        hidden: keep the hidden states that predicted their answers.
    """

    rows: slice
    logits: bool = False
    hidden: bool = False


def mean_over_answer(per_token: Tensor, mask: Tensor) -> Tensor:
    """(B, A) values → (B,) means over the answer tokens; 0 for an example without any."""
    return (per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def answer_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits that predict the answer tokens, (N, V), rows in the order of ``batch["answer_mask"].nonzero()``.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``answer_mask`` (B, T), right-padded.
    """
    return _forward(model, batch, None)[0]


def _forward(model: nn.Module, batch: dict[str, Tensor], layer: int | None) -> tuple[Tensor, Tensor | None]:
    """Logits (N, V), and hidden states (N, H) after a block, at the positions that predict answer tokens."""
    predicts_answer = torch.zeros_like(batch["answer_mask"])
    predicts_answer[:, :-1] = batch["answer_mask"][:, 1:]
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions: Tensor | tuple[int, Tensor] = predicts_answer
    line = pack(**inputs) if packs(model, predicts_answer.shape[1]) else None
    if line is not None:
        inputs, positions = model_inputs(line), (0, line.place[predicts_answer])
    more = {} if layer is None else {"output_hidden_states": True}
    with head_reads_only(model, positions):
        output = model(**inputs, use_cache=False, **more)
    logits: Tensor = output.logits
    # the first of the hidden states is that of the embeddings
    return logits, None if layer is None else output.hidden_states[layer + 1][positions].float()


def logits_at(model: nn.Module, positions: Tensor, **inputs: Tensor) -> Tensor:
    """The logits at some positions, (N, V), rows in the order of ``positions.nonzero()``; the head sees no others.

    Args:
        model: a causal language model, wrapped or not.
        positions: (B, T) bool.
        inputs: what the model takes: ``input_ids`` (B, T), ``attention_mask``, ``position_ids``.
    """
    with head_reads_only(model, positions):
        output = model(**inputs, use_cache=False)
    logits: Tensor = output.logits
    return logits


def score_answers(model: nn.Module, batch: dict[str, Tensor], *, keep_logits: bool = False) -> AnswerScores:
    """Score every answer of a batch with one forward.

    Args:
        model: a causal language model, wrapped or not; gradients flow if they are enabled.
        batch: ``input_ids`` (B, T) right-padded, ``attention_mask`` (B, T), ``answer_mask`` (B, T) True at answer tokens.
        keep_logits: also return the answers' logits (B, A, V).
    """
    return score_parts(model, batch, [Part(slice(None), logits=keep_logits)])[0]


def score_parts(
    model: nn.Module, batch: dict[str, Tensor], parts: Sequence[Part], *, layer: int | None = None
) -> list[AnswerScores]:
    """Score the answers of several groups of rows with one forward, keeping of each group what its loss needs.

    Args:
        model: a causal language model, wrapped or not; gradients flow if they are enabled.
        batch: as for ``score_answers``.
        parts: the groups; rows in a row.
        layer: the block, from 0, whose output is the hidden states; the last one's is that after the final norm.
    """
    answer_mask = batch["answer_mask"].clone()
    answer_mask[:, 0] = False  # nothing predicts the first token of a sequence
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
    """The block whose output hidden states are taken from: the one asked for, or a default at 7/32 of the depth.

    RMU's authors steer block 7 of the 32 of a 7B model (arXiv:2403.03218); other depths get the block at the same height.

    Raises:
        ValueError: the model has no such block.
    """
    depth = int(below_wrapper(model).config.num_hidden_layers)
    chosen = round(7 / 32 * depth) if layer is None else layer
    if chosen >= depth:
        raise ValueError(f"layer is {layer}; this model has the blocks 0 to {depth - 1}")
    return chosen


def left_align(answer_mask: Tensor) -> Tensor:
    """(B, T) mask of answer positions → (B, A) mask whose True entries start at column 0, A the longest answer."""
    lengths = answer_mask.sum(-1)
    longest = max(int(lengths.max()), 1)
    return torch.arange(longest, device=answer_mask.device)[None, :] < lengths[:, None]


def scatter_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """(N, …) values in row order → (B, A, …) with zeros where ``mask`` (B, A) is False; differentiable."""
    return place_rows(flat, mask.flatten().nonzero().squeeze(-1), mask.shape)


def place_rows(flat: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, …) values to ``places`` (N,) of the flattened ``shape`` (B, A), with zeros elsewhere; differentiable.

    By index, not by mask: for (N, V) logits a mask would be counted through element by element, in eight bytes each.
    """
    padded = flat.new_zeros((math.prod(shape), *flat.shape[1:]))
    return padded.index_copy_(0, places, flat).view(*shape, *flat.shape[1:])


def kl_divergence(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """KL(reference ‖ policy) over the vocabulary at each position, in nats; (…, V) and (…, V) → (…)."""
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)
