"""New settings near the front of a search: one to three settings of a good trial, changed a little."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from llm_forget.trials.front import front, hypervolume

SHARE = 3 / 4  # of new trials
_CHANGES = (1, 1, 2, 2, 3)  # how many settings change; each with the same probability
_WIDTH = 0.7  # of a change of a number, as a standard deviation of its logarithm
_TRIES = 100
_BEYOND = 1.1  # the corner of the area: this multiple of the largest distance on the front, and a harm of 1


def near_front(
    trials: Sequence[FrozenTrial], chance: random.Random, key: Callable[[Mapping[str, Any]], object] = dict
) -> dict[str, Any] | None:
    """Settings that differ in a few places from those of a trial on the front.

    Trials within the floors count, or all that ran to their end if none is. A trial is taken in proportion to the area that it
    alone dominates, so that the middle of the front is preferred to its ends. A choice whose trials were ended early is seldom
    made again.

    Args:
        trials: the trials so far.
        chance: random numbers.
        key: settings → what distinguishes runs; settings that have no effect are no part of it.

    Returns:
        Settings whose key no trial has; None if there is no trial to start from, or none were found.
    """
    ended = [one for one in trials if ran_to_its_end(one)]
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
    tried, good = _choices(one for one in trials if one.state == TrialState.COMPLETE), _choices(ended)

    def worth(name: str, value: Any) -> float:
        """1 for what was never tried, 1 / (n + 1) for what was ended early n times."""
        return (good[name, value] + 1) / (tried[name, value] + 1)

    for _ in range(_TRIES):
        parent = parents[chance.choices(places, alone)[0]]
        found = _changed(parent, chance, worth)
        if key(found) not in known and not any(_only_longer(found, one, key) for one in ended):
            return found
    return None


def ran_to_its_end(trial: FrozenTrial) -> bool:
    """Whether a trial has values, and was not ended at a rung."""
    return trial.state == TrialState.COMPLETE and "pruned_at" not in trial.user_attrs


def _only_longer(found: Mapping[str, Any], one: FrozenTrial, key: Callable[[Mapping[str, Any]], object]) -> bool:
    """Whether settings only allow more steps to a trial that reached its target before it had taken all."""
    steps = one.params.get("steps")
    if steps is None or not one.user_attrs.get("reached") or not found["steps"] > steps:
        return False
    return key({**found, "steps": steps}) == key(one.params)


def _choices(trials: Iterable[FrozenTrial]) -> Counter[tuple[str, Any]]:
    """How often each value of a list was taken."""
    return Counter(
        (name, value)
        for one in trials
        for name, value in one.params.items()
        if isinstance(one.distributions[name], CategoricalDistribution)
    )


def _changed(parent: FrozenTrial, chance: random.Random, worth: Callable[[str, Any], float]) -> dict[str, Any]:
    found = dict(parent.params)
    names = chance.sample(sorted(found), min(chance.choice(_CHANGES), len(found)))
    for name in names:
        moved = _moved(found[name], parent.distributions[name], chance)
        if chance.random() < worth(name, moved):
            found[name] = moved
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
