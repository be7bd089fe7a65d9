"""What fine-tuning teaches about rows that it does not contain: measured on held-out rows, and applied to the base.

The base never saw the forget rows, but it has not seen the style of the other training rows either. A model that was trained on
these knows the style, and is much surer of itself, also where it is wrong. Held-out rows show both, because neither model saw
them: the first in the log-prob of their own tokens, the second in the entropy. A teacher that is less sure than such a model
leaves flat answers, and attacks that compare a token with its alternatives (Min-K%++) see that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_forget.data.encode import Encoded
from llm_forget.scores import log_rest
from llm_forget.train.teacher import Teacher, entropy_of

LEVELS = (0.01, 0.05, 0.2, 0.5, 0.8)  # probabilities in the wording of the retain answers that divide the levels
LEAST = 50  # held-out answer tokens from which a level is measured by itself
STYLE = 0.5  # share from which the tokens of a level are style
_ORDER = 5  # tokens of the wording, the predicted one included
_READ = 2000  # retain rows whose wordings are counted; more fill the memory
_COLDEST = 0.05
_ROUNDS = 40  # of bisection


@dataclass(frozen=True)
class Change:
    """How the base's distribution changes at the answer tokens of one level: first the temperature, then the share.

    Attributes:
        share: of the probability of all other tokens, which goes to the row's own token: the style is known.
        temperature: at most 1: the model is surer than the base, also where it is wrong.
    """

    share: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Calibrated:
    """What a model that was trained on the other rows would say about n rows.

    Attributes:
        teacher: the most likely tokens, with the row's own among them.
        means: (n,) mean log-prob per answer token of each row, in nats.
        counted: for each row (A,) False at tokens that are style, which such a model knows as well as any other.
    """

    teacher: Teacher
    means: Tensor
    counted: list[Tensor]


def style_levels(rows: Sequence[Encoded], retain: Sequence[Encoded]) -> list[Tensor]:
    """For each row (A,): how well the wording of the retain answers predicts each answer token, from 0 to ``len(LEVELS)``.

    The prediction is that of tokens after the last four, counted in the retain answers, with shorter contexts where longer ones
    are unknown or vary.

    Source: Witten and Bell 1991, IEEE Transactions on Information Theory 37(4), method C, interpolated.
    """
    counts: list[dict[tuple[int, ...], Counter[int]]] = [{} for _ in range(_ORDER)]
    for row in retain[:: max(1, len(retain) // _READ)]:
        for end in range(max(row.prompt_length, 1), len(row.input_ids)):
            for length in range(min(_ORDER - 1, end) + 1):
                context = row.input_ids[end - length : end]
                counts[length].setdefault(context, Counter())[row.input_ids[end]] += 1
    edges = torch.tensor(LEVELS)
    return [torch.bucketize(torch.tensor(_predicted(row, counts)), edges, right=True) for row in rows]


def _predicted(row: Encoded, counts: Sequence[Mapping[tuple[int, ...], Counter[int]]]) -> list[float]:
    found = []
    for end in range(max(row.prompt_length, 1), len(row.input_ids)):
        share = 0.0
        for length in range(min(_ORDER - 1, end) + 1):
            seen = counts[length].get(row.input_ids[end - length : end])
            if not seen:
                break
            share = (seen[row.input_ids[end]] + len(seen) * share) / (seen.total() + len(seen))
        found.append(share)
    return found


def measure_changes(base: Teacher, own: Teacher, levels: Sequence[Tensor]) -> list[Change] | None:
    """The change of each level that gives held-out answers the mean log-prob and entropy that they have after fine-tuning.

    Args:
        base: the base's scores of the held-out rows.
        own: the fine-tuned model's scores of the same rows; only ``logps`` and ``answer_logps`` are read.
        levels: for each row (A,), from ``style_levels``.

    Returns:
        A change for each level; levels with few tokens share one. None if all together have less than ``LEAST`` tokens.
    """
    level = torch.cat(list(levels)) if levels else torch.zeros(0)
    if len(level) < LEAST:
        return None
    tokens, logps, answer, first = (
        torch.cat(list(part)) for part in (base.tokens, base.logps, base.answers, base.answer_logps)
    )
    wanted, sure = torch.cat(list(own.answer_logps)), entropy_of(torch.cat(list(own.logps)))
    changes: list[Change] = [Change()] * (len(LEVELS) + 1)
    for group in _groups(level):
        here = torch.isin(level, torch.tensor(group))
        _, likely, place = _with_answer(tokens[here], logps[here], answer[here], first[here])
        found = _fit(likely, place, float(wanted[here].mean()), float(sure[here].mean()))
        for one in group:
            changes[one] = found
    return changes


def calibrated(base: Teacher, levels: Sequence[Tensor], changes: Sequence[Change]) -> Calibrated:
    """The base with the changes of each level.

    Args:
        base: the base's scores of n rows.
        levels: for each row (A,), from ``style_levels``.
        changes: from ``measure_changes``.
    """
    out, means = Teacher([], [], [], []), []
    style = torch.tensor([change.share >= STYLE for change in changes])
    for tokens, logps, answer, first, level in zip(
        base.tokens, base.logps, base.answers, base.answer_logps, levels, strict=True
    ):
        tokens, logps, place = _with_answer(tokens, logps, answer, first)
        changed = logps.clone()
        for one in range(len(LEVELS) + 1):
            here = level == one
            changed[here] = _apply(logps[here], place[here], changes[one])
        own = changed.gather(-1, place[:, None]).squeeze(-1)
        for part, value in zip(
            (out.tokens, out.logps, out.answers, out.answer_logps), (tokens, changed, answer, own), strict=True
        ):
            part.append(value)
        means.append(float(own.mean()) if len(own) else 0.0)
    return Calibrated(out, torch.tensor(means), [~style[level] for level in levels])


def _groups(level: Tensor) -> list[list[int]]:
    """The levels, joined until each group has ``LEAST`` tokens; the last ones join those before."""
    groups: list[list[int]] = [[]]
    counts = [0]
    for one in range(len(LEVELS) + 1):
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
    if change.temperature < 1:
        power = 1 / change.temperature
        # each of the tokens outside is at most as likely as the least likely one inside
        rest = log_rest(logps)[..., None] + (power - 1) * logps.amin(-1, keepdim=True)
        cold = logps * power
        logps = cold - torch.cat([cold, rest], -1).logsumexp(-1, keepdim=True)
    if change.share > 0:
        kept = logps + math.log1p(-change.share)
        own = logps.gather(-1, place[:, None]).exp()
        logps = kept.scatter(-1, place[:, None], (own + change.share * (1 - own)).log())
    return logps


def _fit(logps: Tensor, place: Tensor, wanted: float, entropy: float) -> Change:
    """The change after which the mean log-prob of the own tokens is ``wanted``, and the mean entropy ``entropy`` if possible."""

    def gap(change: Change) -> float:
        return float(_apply(logps, place, change).gather(-1, place[:, None]).mean()) - wanted

    def known(temperature: float) -> Change:
        if gap(Change(temperature=temperature)) >= 0:
            return Change(temperature=temperature)
        share = _bisect(lambda share: gap(Change(share, temperature)), 0.0, 1 - 1e-6)
        return Change(share, temperature)

    def surer(temperature: float) -> float:
        return float(entropy_of(_apply(logps, place, known(temperature))).mean()) - entropy

    found = known(_bisect(surer, _COLDEST, 1.0))
    if found.share > 0 or gap(found) <= 0:
        return found
    # only a lower temperature makes the own tokens less likely
    return Change(temperature=_bisect(lambda warm: gap(Change(temperature=warm)), _COLDEST, found.temperature))


def _bisect(gap: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses 0, or the nearer end."""
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    return low
