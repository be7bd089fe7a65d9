"""New settings near the front of a search: one to three settings of a good trial, changed a little."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from llm_forget.trials.front import front, hypervolume

SHARE = 2 / 3  # of new trials
_CHANGES = (1, 1, 2, 2, 3)  # how many settings change; each with the same probability
_WIDTH = 0.7  # of a change of a number, as a standard deviation of its logarithm
_TRIES = 50
_BEYOND = 1.1  # the corner of the area: this multiple of the largest distance on the front, and a harm of 1


def near_front(
    trials: Sequence[FrozenTrial], chance: random.Random, key: Callable[[Mapping[str, Any]], object] = dict
) -> dict[str, Any] | None:
    """Settings that differ in a few places from those of a trial on the front.

    Trials within the floors count, or all that ran to their end if none is. A trial is taken in proportion to the area that it
    alone dominates, so that the middle of the front is preferred to its ends.

    Args:
        trials: the trials so far.
        chance: random numbers.
        key: settings → what distinguishes runs; settings that have no effect are no part of it.

    Returns:
        Settings whose key no trial has; None if there is no trial to start from, or none were found.
    """
    ended = [one for one in trials if one.state == TrialState.COMPLETE and "pruned_at" not in one.user_attrs]
    parents = [one for one in ended if all(value <= 0 for value in one.constraints.values())] or ended
    points = [(one.values[0], one.values[1]) for one in parents]
    places = front(points)
    if not places:
        return None
    best = [points[place] for place in places]
    corner = (_BEYOND * max(one[0] for one in best) + 1e-9, max(1.0, _BEYOND * max(one[1] for one in best)))
    whole = hypervolume(best, corner)
    alone = [whole - hypervolume([*best[:index], *best[index + 1 :]], corner) + 1e-9 for index in range(len(best))]
    known = [key(one.params) for one in trials if one.params]
    for _ in range(_TRIES):
        parent = parents[chance.choices(places, alone)[0]]
        found = _changed(parent, chance)
        if key(found) not in known:
            return found
    return None


def _changed(parent: FrozenTrial, chance: random.Random) -> dict[str, Any]:
    found = dict(parent.params)
    names = chance.sample(sorted(found), min(chance.choice(_CHANGES), len(found)))
    for name in names:
        found[name] = _moved(found[name], parent.distributions[name], chance)
    return found


def _moved(value: Any, kind: BaseDistribution, chance: random.Random) -> Any:
    """A number nearby, the next one of a list of numbers, or any other of a list of names."""
    if isinstance(kind, FloatDistribution):
        moved = (
            value * math.exp(chance.gauss(0, _WIDTH))
            if kind.log
            else value + chance.gauss(0, (kind.high - kind.low) / 4)
        )
        return min(max(moved, kind.low), kind.high)
    if not isinstance(kind, CategoricalDistribution) or len(kind.choices) < 2:
        return value
    choices = list(kind.choices)
    place = choices.index(value)
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in choices):
        return choices[chance.choice([one for one in (place - 1, place + 1) if 0 <= one < len(choices)])]
    return chance.choice([one for one in choices if one != value])
