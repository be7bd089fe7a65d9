"""A small budget for the attacker: choose among settings on half of the rows, and score the other half."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.evaluation.tokens import Floats

Setting = TypeVar("Setting")

# Rows of each half on which a setting is tried: enough to see a strong leak, cheap enough for several settings.
TRIED = 4


def tuned(
    rows: Rows, budget: Budget, settings: Mapping[str, Setting], score: Callable[[Setting, Sequence[int]], Floats]
) -> Leaks:
    """Score each half of the forget rows with the setting that reveals most on a few rows of the other half.

    The choice never sees a row that it scores, so it does not inflate the result. The first setting changes nothing and wins
    ties, so an attack that does not help scores as no attack.

    Args:
        rows: the rows of the audit; the halves are ``rows.held`` and ``rows.asked``.
        budget: at most ``tries`` settings besides the first are tried.
        settings: name → setting.
        score: a setting and row numbers → (n,) scores in [0, 1], high if the rows are revealed; NaN for "not scored".

    Returns:
        Scores of all forget rows, and the name of the chosen setting (of both halves, if they differ).

    Source: cross-fitting, e.g. Chernozhukov et al. 2018, The Econometrics Journal 21(1), section 3.
    """
    known: dict[str, Floats] = {name: np.full(len(rows.forget), np.nan) for name in _tried(settings, budget)}
    seen: dict[str, set[int]] = {name: set() for name in known}

    def fill(name: str, wanted: Sequence[int]) -> None:
        missing = [row for row in wanted if row not in seen[name]]
        if missing:
            known[name][missing] = score(settings[name], missing)
            seen[name].update(missing)

    halves = _halves(rows)
    if len(known) > 1:
        for name in known:
            fill(name, [row for half in halves for row in _few(half)])
    chosen = [_best({name: values[_few(other)] for name, values in known.items()}) for other in reversed(halves)]
    for name in dict.fromkeys(chosen):
        fill(name, [row for half, own in zip(halves, chosen, strict=True) if own == name for row in half])
    found = np.full(len(rows.forget), np.nan)
    for half, name in zip(halves, chosen, strict=True):
        found[half] = known[name][half]
    return leaks(rows.forget, found, setting=" / ".join(dict.fromkeys(chosen)))


def tuned_by_half(
    rows: Rows,
    budget: Budget,
    settings: Mapping[str, Setting],
    score: Callable[[Setting, Sequence[int], Sequence[int]], Floats],
) -> Leaks:
    """``tuned`` for an attack that also learns something from the other half, which ``score`` gets as its third argument."""
    found, chosen = np.full(len(rows.forget), np.nan), []
    halves = _halves(rows)
    for own, other in zip(halves, reversed(halves), strict=True):
        name = _best({name: score(settings[name], _few(other), other) for name in _tried(settings, budget)})
        found[own] = score(settings[name], own, other)
        chosen.append(name)
    return leaks(rows.forget, found, setting=" / ".join(dict.fromkeys(chosen)))


def _tried(settings: Mapping[str, Setting], budget: Budget) -> list[str]:
    return list(settings)[: 1 + max(budget.tries, 1)]


def _halves(rows: Rows) -> list[list[int]]:
    own = len(rows.held)
    return [list(range(own)), list(range(own, len(rows.forget)))]


def _few(half: Sequence[int]) -> list[int]:
    """At most ``TRIED`` rows, evenly spread."""
    places = np.unique(np.linspace(0, len(half) - 1, min(TRIED, len(half))).round()).astype(int)
    return [half[place] for place in places]


def _best(scores: Mapping[str, Floats]) -> str:
    """The setting with the highest mean; the first of equals."""
    means = {name: float(np.nanmean(one)) if np.isfinite(one).any() else -np.inf for name, one in scores.items()}
    return max(means, key=lambda name: means[name])
