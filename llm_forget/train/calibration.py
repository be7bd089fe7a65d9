"""What fine-tuning teaches about rows that it does not contain: measured on held-out rows, and applied to the base.

The base never saw the forget rows, but it has not seen the style of the other training rows either. A model that was trained on
these knows the style, and is surer of itself where it is wrong. Held-out rows show both, because neither model saw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_forget.data.encode import Encoded
from llm_forget.train.teacher import Teacher

GRAM = 5  # tokens; longer matches count as these
LEAST = 50  # held-out answer tokens from which a level is measured by itself
_READ = 2000  # retain rows whose wordings are known; more fill the memory
_COLDEST = 0.2
_ROUNDS = 40  # of bisection


@dataclass(frozen=True)
class Change:
    """How the base's distribution changes at the answer tokens of one level.

    Attributes:
        share: of the probability of all other tokens, which goes to the row's own token: the style is known.
        temperature: at most 1, with share 0: the model is surer than the base, also where it is wrong.
    """

    share: float = 0.0
    temperature: float = 1.0


def style_levels(rows: Sequence[Encoded], retain: Sequence[Encoded]) -> list[Tensor]:
    """For each row (A,): how much of the text up to each answer token stands in a retain answer too.

    0: at most the token itself, 1: the last two tokens, up to ``GRAM`` − 1: the last ``GRAM`` tokens.
    """
    known: list[set[tuple[int, ...]]] = [set() for _ in range(GRAM)]
    for row in retain[:: max(1, len(retain) // _READ)]:
        for end in range(max(row.prompt_length, 1), len(row.input_ids)):
            for length in range(1, min(GRAM, end + 1) + 1):
                known[length - 1].add(row.input_ids[end + 1 - length : end + 1])
    return [torch.tensor(_levels(row, known), dtype=torch.long) for row in rows]


def _levels(row: Encoded, known: Sequence[set[tuple[int, ...]]]) -> list[int]:
    found = []
    for end in range(max(row.prompt_length, 1), len(row.input_ids)):
        length = 0
        while length < min(GRAM, end + 1) and row.input_ids[end - length : end + 1] in known[length]:
            length += 1
        found.append(max(length - 1, 0))
    return found


def measure_changes(base: Teacher, own: Sequence[Tensor], levels: Sequence[Tensor]) -> list[Change] | None:
    """The change of each level that gives held-out answers the mean log-prob that they have after fine-tuning.

    Args:
        base: the base's scores of the held-out rows.
        own: for each row (A,) the log-probs of its answer tokens under the fine-tuned model, in nats.
        levels: for each row (A,), from ``style_levels``.

    Returns:
        ``GRAM`` changes; a level with few tokens shares one with the next. None if all together have less than ``LEAST`` tokens.
    """
    level = torch.cat(list(levels)) if levels else torch.zeros(0)
    if len(level) < LEAST:
        return None
    tokens, logps, answer, first = (
        torch.cat(list(part)) for part in (base.tokens, base.logps, base.answers, base.answer_logps)
    )
    wanted = torch.cat([row.float() for row in own])
    changes: list[Change] = [Change()] * GRAM
    for group in _groups(level):
        here = torch.isin(level, torch.tensor(group))
        part = _with_answer(tokens[here], logps[here], answer[here], first[here])
        found = _fit(*part, float(wanted[here].mean()))
        for one in group:
            changes[one] = found
    return changes


def calibrated(base: Teacher, levels: Sequence[Tensor], changes: Sequence[Change]) -> tuple[Teacher, Tensor]:
    """The base with the changes of each level: what a model that was trained on the other rows would say.

    Args:
        base: the base's scores of n rows.
        levels: for each row (A,), from ``style_levels``.
        changes: from ``measure_changes``.

    Returns:
        The teacher, and the mean log-prob per answer token of each row (n,), in nats.
    """
    out, means = Teacher([], [], [], []), []
    for tokens, logps, answer, first, level in zip(
        base.tokens, base.logps, base.answers, base.answer_logps, levels, strict=True
    ):
        tokens, logps, place = _with_answer(tokens, logps, answer, first)
        changed = logps.clone()
        for one in range(GRAM):
            here = level == one
            changed[here] = _apply(logps[here], place[here], changes[one])
        own = changed.gather(-1, place[:, None]).squeeze(-1)
        for part, value in zip(
            (out.tokens, out.logps, out.answers, out.answer_logps), (tokens, changed, answer, own), strict=True
        ):
            part.append(value)
        means.append(float(own.mean()) if len(own) else 0.0)
    return out, torch.tensor(means)


def _groups(level: Tensor) -> list[list[int]]:
    """The levels, joined until each group has ``LEAST`` tokens; the last ones join those before."""
    groups: list[list[int]] = [[]]
    counts = [0]
    for one in range(GRAM):
        if counts[-1] >= LEAST:
            groups.append([])
            counts.append(0)
        groups[-1].append(one)
        counts[-1] += int((level == one).sum())
    if counts[-1] < LEAST and len(groups) > 1:
        last = groups.pop()
        groups[-1] += last
    return groups


def _with_answer(tokens: Tensor, logps: Tensor, answer: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens (A, K) with the row's own token among them, instead of the last one; and its place (A,)."""
    tokens, logps = tokens.clone(), logps.clone()
    inside = tokens == answer[:, None]
    missing = ~inside.any(-1)
    tokens[missing, -1], logps[missing, -1] = answer[missing].to(tokens.dtype), first[missing]
    return tokens, logps, torch.where(missing, tokens.shape[-1] - 1, inside.int().argmax(-1))


def _apply(logps: Tensor, place: Tensor, change: Change) -> Tensor:
    """The changed log-probs (A, K)."""
    if change.share > 0:
        kept = logps + math.log1p(-change.share)
        own = logps.gather(-1, place[:, None]).exp()
        return kept.scatter(-1, place[:, None], (own + change.share * (1 - own)).log())
    if change.temperature == 1:
        return logps
    power = 1 / change.temperature
    # each of the tokens outside is at most as likely as the least likely one inside
    rest = (1 - logps.exp().sum(-1, keepdim=True)).clamp(min=1e-7).log() + (power - 1) * logps.amin(-1, keepdim=True)
    cold = logps * power
    return cold - torch.cat([cold, rest], -1).logsumexp(-1, keepdim=True)


def _fit(tokens: Tensor, logps: Tensor, place: Tensor, wanted: float) -> Change:
    """The change after which the mean log-prob of the own tokens is ``wanted``."""

    def gap(change: Change) -> float:
        return float(_apply(logps, place, change).gather(-1, place[:, None]).mean()) - wanted

    now = gap(Change())
    if now < 0:
        return Change(share=_bisect(lambda share: gap(Change(share=share)), 0.0, 1 - 1e-6))
    return Change(temperature=_bisect(lambda cold: -gap(Change(temperature=1 - cold)), 0.0, 1 - _COLDEST, flip=True))


def _bisect(gap: Callable[[float], float], low: float, high: float, *, flip: bool = False) -> float:
    """Where a rising function crosses 0, or the nearer end; ``flip`` gives 1 less it."""
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    return 1 - low if flip else low
