"""Score answers under an attack: one probability per row, from log-probs or from changed logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llm_forget.auditing.tools.asking import encode_opened, roomy
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig
from llm_forget.data.examples import Example
from llm_forget.evaluation.tokens import Floats
from llm_forget.model.batching import answer_batches, answer_offsets, evaluating, place_rows
from llm_forget.model.limits import padding_id, position_limit
from llm_forget.model.logprobs import answer_logits

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject

_BATCH_TOKENS = 2048


def probabilities(
    subject: Subject,
    examples: Sequence[Example],
    *,
    opening: str | Sequence[str] = "",
    encoding: EncodingConfig | None = None,
) -> Floats:
    """(E,) exp(mean log-prob per answer token) of each example's answer, in [0, 1]; NaN without a scored token.

    Args:
        subject: the model.
        examples: the examples as the attacker asks them.
        opening: words before each answer that are not scored, one for all or one each.
        encoding: other settings than the subject's.
    """
    return np.exp(subject.score_tokens(encoded(subject, examples, opening, encoding)).mean_logps())


def encoded(
    subject: Subject,
    examples: Sequence[Example],
    opening: str | Sequence[str] = "",
    encoding: EncodingConfig | None = None,
) -> list[Encoded]:
    """Encode examples as an attacker asks them, one row each, within the positions that the model knows."""
    openings = [opening] * len(examples) if isinstance(opening, str) else list(opening)
    config = roomy(encoding or subject.encoding, None if subject.model is None else position_limit(subject.model))
    return [
        encode_opened(subject.tokenizer, example, config, words)
        for example, words in zip(examples, openings, strict=True)
    ]


def best_wordings(subject: Subject, examples: Sequence[Example]) -> Floats:
    """(E,) probability of each row's answer in its most likely wording: its own, or one of its paraphrases."""
    pairs = [(row, text) for row, one in enumerate(examples) for text in (one.answer, *one.paraphrases)]
    found = probabilities(subject, [replace(examples[row], answer=text) for row, text in pairs])
    best = np.full(len(examples), np.nan)
    for (row, _), value in zip(pairs, found, strict=True):
        best[row] = np.fmax(best[row], value)
    return best


def read_logits(
    subject: Subject, rows: Sequence[Encoded], read: Callable[[Tensor, Tensor], Sequence[Tensor]]
) -> list[Floats]:
    """Values of the answer tokens that need the logits, such as log-probs under another decoding.

    Args:
        subject: the loaded model.
        rows: encoded rows.
        read: (N, V) logits in fp32 and (N,) answer tokens → S tensors of shape (N,).

    Returns:
        S arrays (E,): the mean over the answer tokens of each row; NaN for a row without tokens.
    """

    def compute(inputs: dict[str, Tensor]) -> Sequence[Tensor]:
        logits = answer_logits(subject.model, inputs).float()
        return read(logits, inputs["input_ids"][inputs["answer_mask"]])

    return over_answers(subject, rows, compute)


def over_answers(
    subject: Subject, rows: Sequence[Encoded], compute: Callable[[dict[str, Tensor]], Sequence[Tensor]]
) -> list[Floats]:
    """Compute values of the answer tokens batch by batch, without gradients, and average them over each row.

    Args:
        subject: the loaded model.
        rows: encoded rows.
        compute: a padded batch (``collate``) → S tensors with a value for each answer token of the batch, rows concatenated.

    Returns:
        S arrays (E,) as in ``read_logits``.
    """
    offsets = answer_offsets(rows)
    parts: list[tuple[list[int], Floats]] = []
    for batch, inputs in batches(subject, rows):
        parts.append((batch, torch.stack(list(compute(inputs))).double().cpu().numpy()))
    found = np.zeros((len(parts[0][1]) if parts else 0, int(offsets[-1])))
    for batch, values in parts:
        place_rows(found, offsets, batch, values)
    owners = np.repeat(np.arange(len(rows)), [row.answer_length for row in rows])
    lengths = np.array([row.answer_length or np.nan for row in rows])
    return [np.bincount(owners, weights=values, minlength=len(rows)) / lengths for values in found]


def batches(subject: Subject, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of similar length on the model's device, as row numbers and ``collate``'s tensors, without gradients."""
    device = next(subject.model.parameters()).device
    pad = padding_id(subject.tokenizer, subject.model)
    for batch in answer_batches(rows, _BATCH_TOKENS):
        inputs = {k: v.to(device) for k, v in collate([rows[index] for index in batch], pad).items()}
        inputs["answer_mask"][:, 0] = False  # nothing predicts the first token
        with evaluating(subject.model), torch.no_grad():
            yield batch, inputs


def at_token(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) logits and (N,) tokens → (N,) log-probs of the tokens."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
