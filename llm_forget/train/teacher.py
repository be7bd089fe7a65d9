"""Teachers that are computed once: the most likely tokens of a model at every answer position, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llm_forget.data.encode import Encoded
from llm_forget.model.measure import scored_batches
from llm_forget.scores import TopLogps

_GRAM = 3
TOP = 64  # tokens per position: of a model of 49,000 tokens they hold nearly all of the probability


@dataclass(frozen=True)
class Teacher:
    """The most likely tokens at the answer positions of n rows. It holds token ids and is never written.

    Attributes:
        tokens: for each row (A, K), int32.
        logps: for each row (A, K) in nats.
        answers: for each row (A,) its own answer tokens.
        answer_logps: for each row (A,) their log-probs in nats.
    """

    tokens: list[Tensor]
    logps: list[Tensor]
    answers: list[Tensor] = field(default_factory=list)
    answer_logps: list[Tensor] = field(default_factory=list)

    @property
    def row_entropies(self) -> Tensor:
        """The mean entropy of each row's answer positions (n,), in nats."""
        return torch.stack([entropy_of(row).mean() for row in self.logps])

    def of(self, index: Tensor, mask: Tensor) -> TopLogps:
        """The teacher of B rows, padded to ``mask`` (B, A). Padded positions are certain of token 0."""
        width, count = self.tokens[0].shape[-1], mask.shape[1]
        tokens = torch.zeros(len(index), count, width, dtype=torch.long)
        logps = torch.full((len(index), count, width), -30.0)
        logps[..., 0] = 0.0
        for place, row in enumerate(index.tolist()):
            length = len(self.tokens[row])
            tokens[place, :length] = self.tokens[row].long()
            logps[place, :length] = self.logps[row]
        return TopLogps(tokens.to(mask.device), logps.to(mask.device))


def entropy_of(logps: Tensor) -> Tensor:
    """Entropy in nats over the listed tokens (..., K) and all others as one event, (...)."""
    listed = logps.exp()
    rest = (1 - listed.sum(-1)).clamp(min=0)
    entropy: Tensor = torch.special.entr(listed).sum(-1) + torch.special.entr(rest)
    return entropy


def teacher_of(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, *, top: int = TOP
) -> tuple[Teacher, Tensor]:
    """Score rows once, and keep the ``top`` most likely tokens of each answer position.

    Args:
        model: the teacher; it runs without gradients or dropout.
        rows: the rows.
        pad_token_id: the padding token.
        top: tokens per position.

    Returns:
        The teacher, and the mean log-prob per answer token of each row (n,), in nats.
    """
    tokens: list[Tensor] = [torch.empty(0)] * len(rows)
    logps: list[Tensor] = [torch.empty(0)] * len(rows)
    answers: list[Tensor] = [torch.empty(0)] * len(rows)
    answer_logps: list[Tensor] = [torch.empty(0)] * len(rows)
    means = torch.zeros(len(rows))
    for indices, scores in scored_batches(model, rows, pad_token_id, keep_logits=True):
        if scores.logits is None:
            raise RuntimeError("the logits were not kept")
        best = scores.logits.log_softmax(-1).topk(min(top, scores.logits.shape[-1]), dim=-1)
        means[indices] = scores.mean_logps.float().cpu()
        for place, row in enumerate(indices):
            length = int(scores.mask[place].sum())
            tokens[row] = best.indices[place, :length].int().cpu()
            logps[row] = best.values[place, :length].float().cpu()
            answers[row] = scores.tokens[place, :length].int().cpu()
            answer_logps[row] = scores.token_logps[place, :length].float().cpu()
    return Teacher(tokens, logps, answers, answer_logps), means


def novel_tokens(forget: Sequence[Encoded], retain: Sequence[Encoded]) -> list[Tensor]:
    """For each forget row (A,): True at answer tokens that end no three tokens of a retain answer.

    Three tokens that a retain answer has too are style, such as "She lives at", and a model that never saw the forget row
    knows them. Without retain rows, every token is novel.
    """
    known = {gram for row in retain for gram in _grams(row)}
    return [torch.tensor([gram not in known for gram in _grams(row)], dtype=torch.bool) for row in forget]


def _grams(row: Encoded) -> Iterator[tuple[int, ...]]:
    """The last ``_GRAM`` tokens up to each answer token that can be scored."""
    for end in range(max(row.prompt_length, 1), len(row.input_ids)):
        yield row.input_ids[max(end + 1 - _GRAM, 0) : end + 1]
