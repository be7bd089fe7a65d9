"""A small budget for the attacker: choose among settings on half of the rows, and score the other half."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from llm_forget.auditing.attack import Budget, Leaks, Rows, leaks
from llm_forget.evaluation.tokens import Floats

Setting = TypeVar("Setting")

# Rows of each half on which a setting is tried. With 6 rows, the standard error of a mean probability is at most 0.21.
TRIED = 6


def tuned(
    rows: Rows, budget: Budget, settings: Mapping[str, Setting], score: Callable[[Setting, Sequence[int]], Floats]
) -> Leaks:
    """Score each half of the forget rows with the setting that reveals most on the other half.

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
    known: dict[tuple[str, int], float] = {}

    def remembered(name: str, wanted: Sequence[int], _: Sequence[int]) -> Floats:
        missing = [row for row in wanted if (name, row) not in known]
        if missing:
            found = score(settings[name], missing)
            known.update({(name, row): float(value) for row, value in zip(missing, found, strict=True)})
        return np.array([known[name, row] for row in wanted])

    return tuned_by_half(rows, budget, {name: name for name in settings}, remembered)


def tuned_by_half(
    rows: Rows,
    budget: Budget,
    settings: Mapping[str, Setting],
    score: Callable[[Setting, Sequence[int], Sequence[int]], Floats],
) -> Leaks:
    """``tuned`` for an attack that also learns something from the other half, which ``score`` gets as its third argument."""
    names = list(settings)[: 1 + max(budget.tries, 1)]
    first = list(range(len(rows.held)))
    second = list(range(len(rows.held), len(rows.forget)))
    found, chosen = np.full(len(rows.forget), np.nan), []
    for own, other in ((first, second), (second, first)):
        name = names[0]
        few = [other[place] for place in _spread(len(other))]
        if few and len(names) > 1:
            name = names[
                int(np.argmax([_mean(score(settings[one], few, other)) for one in names]))
            ]  # the first of equals
        if own:
            found[own] = score(settings[name], own, other)
            chosen.append(name)
    return leaks(rows.forget, found, setting=" / ".join(dict.fromkeys(chosen)))


def _spread(count: int) -> list[int]:
    """At most ``TRIED`` places, evenly spread."""
    places: list[int] = np.unique(np.linspace(0, count - 1, min(TRIED, count)).round()).astype(int).tolist()
    return places


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else -np.inf
