"""From a batch to the log-probabilities of its answer tokens: the only code that shifts labels or reads masks.

One forward of the model, and the language-model head only on the positions that predict an answer token: prompt and padding
positions never touch the vocabulary. Results are laid out answer by answer, ``(B, A)`` with A the longest answer of the batch,
so that a loss reads like its formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llm_forget.head import chunk_rows, head_gives_logps, head_reads_only, output_head

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
    """

    token_logps: Tensor
    mask: Tensor
    tokens: Tensor
    logits: Tensor | None = None
    reference_logps: Tensor | None = None
    reference_logits: Tensor | None = None

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
        optional = {
            name: None if value is None else value[index]
            for name in ("logits", "reference_logps", "reference_logits")
            for value in [getattr(self, name)]
        }
        return replace(
            self, token_logps=self.token_logps[index], mask=self.mask[index], tokens=self.tokens[index], **optional
        )


def answer_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits that predict the answer tokens, (N, V), rows in the order of ``batch["answer_mask"].nonzero()``.

    Args:
        model: a causal language model, wrapped or not.
        batch: ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``answer_mask`` (B, T), right-padded.
    """
    predicts_answer = torch.zeros_like(batch["answer_mask"])
    predicts_answer[:, :-1] = batch["answer_mask"][:, 1:]
    with head_reads_only(model, predicts_answer):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits: Tensor = output.logits
    return logits


def score_answers(model: nn.Module, batch: dict[str, Tensor], *, keep_logits: bool = False) -> AnswerScores:
    """Score every answer of a batch with one forward.

    Args:
        model: a causal language model, wrapped or not; gradients flow if they are enabled.
        batch: ``input_ids`` (B, T) right-padded, ``attention_mask`` (B, T), ``answer_mask`` (B, T) True at answer tokens.
        keep_logits: also return the answers' logits (B, A, V).
    """
    answer_mask = batch["answer_mask"].clone()
    answer_mask[:, 0] = False  # nothing predicts the first token of a sequence
    targets = batch["input_ids"][answer_mask]
    size = None if keep_logits else chunk_rows(model, len(targets))
    with nullcontext() if size is None else head_gives_logps(model, targets, size):
        logits = answer_logits(model, {**batch, "answer_mask": answer_mask}).float()
    flat_logps = logits.squeeze(-1)
    if size is None:
        flat_logps = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)

    mask = left_align(answer_mask)
    return AnswerScores(
        token_logps=scatter_rows(flat_logps, mask),
        mask=mask,
        tokens=scatter_rows(targets, mask),
        logits=scatter_rows(logits, mask) if keep_logits else None,
    )


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
