"""How strong an adapter should be: a search along its line, and over groups of layers, under a utility floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.groups import layer_groups, module_strengths, scale_groups
from llm_forget.adapters.lora import Adapter
from llm_forget.config import UnlearnData
from llm_forget.errors import AdapterError
from llm_forget.methods.adapter_subtraction import search_strength
from llm_forget.model.measure import SampleMeter
from llm_forget.search.behaviour import Fitting, Probe
from llm_forget.stop import NEVER_SEEN, Measurement, StopRule

Report = Callable[[tuple[float, ...], Measurement], None]


@dataclass(frozen=True)
class Limits:
    """What is searched for, and how far.

    Attributes:
        target: forget probability to reach; None measures the holdout rows, or takes 0.1 without any.
        utility_floor: share of the retain probability that has to stay.
        maximum: largest strength tried.
        tries: bisections of the one strength.
        groups: groups of layers that get a strength each; 1 for one strength.
        rounds: passes over the groups.
    """

    target: float | None = None
    utility_floor: float = 0.95
    maximum: float = 8.0
    tries: int = 6
    groups: int = 1
    rounds: int = 3

    def __post_init__(self) -> None:
        wrong = []
        if self.target is not None and not 0 < self.target < 1:
            wrong.append(f"target is {self.target}; a probability between 0 and 1 is needed")
        if not 0 <= self.utility_floor <= 1:
            wrong.append(f"floor is {self.utility_floor}; it is a share, between 0 and 1")
        if not 0 < self.maximum < math.inf:
            wrong.append(f"maximum is {self.maximum}; a number above 0 is needed")
        wrong += [
            f"{name} is {n}; at least 1 is needed"
            for name in ("tries", "groups", "rounds")
            if (n := getattr(self, name)) < 1
        ]
        if wrong:
            raise AdapterError("the search cannot start: " + "; ".join(wrong) + ".")


@dataclass(frozen=True)
class Found:
    """What the search chose.

    Attributes:
        adapter: the adapter at these strengths, plain LoRA.
        groups: the groups of layers; none when there is one strength for all.
        strengths: one a group, or the one.
        before: the base.
        after: the adapter at these strengths.
        target: forget probability that was to be reached.
        floor: retain probability that had to stay, or None without retain rows.
    """

    adapter: Adapter
    groups: tuple[tuple[int, ...], ...]
    strengths: tuple[float, ...]
    before: Measurement
    after: Measurement
    target: float
    floor: float | None


def coordinate_search(
    measure: Callable[[tuple[float, ...]], Measurement],
    start: Sequence[float],
    *,
    target: float | None,
    floor: float | None,
    maximum: float,
    rounds: int,
) -> tuple[float, ...]:
    """Improve strengths one at a time: up or down by a step that is halved whenever no coordinate gains.

    Better is: above the floor before below it; then the lower forget probability, nothing below the target counting as
    lower; then the higher retain probability. What comes out is never worse than the start.

    Args:
        measure: strengths → measurement.
        start: strengths to begin with, usually all equal.
        target: forget probability that is enough, or None.
        floor: retain probability that must stay, or None.
        maximum: largest strength; the smallest is 0.
        rounds: passes over all coordinates.

    Source: compass search, e.g. Kolda, Lewis and Torczon 2003, SIAM Review 45(3).
    """
    best = tuple(start)
    score = _score(measure(best), target, floor)
    step = max(best) / 2 or maximum / 4
    for _ in range(rounds):
        improved = False
        for index in range(len(best)):
            for change in (step, -step):
                moved = min(max(best[index] + change, 0.0), maximum)
                candidate = (*best[:index], moved, *best[index + 1 :])
                if candidate == best:
                    continue
                found = _score(measure(candidate), target, floor)
                if found < score:
                    best, score, improved = candidate, found, True
                    break
        if not improved:
            step /= 2
    return best


def _score(now: Measurement, target: float | None, floor: float | None) -> tuple[bool, float, float]:
    """Smaller is better."""
    broken = not StopRule(target, floor, 1).above_floor(now)
    forget = math.inf if math.isnan(now.forget) else max(now.forget, target or 0.0)
    return broken, forget, -(now.retain or 0.0)


def search_adapter(
    adapter: Adapter,
    probe: Probe,
    data: UnlearnData,
    limits: Limits | None = None,
    report: Report = lambda *_: None,
) -> Found:
    """Find how strong an adapter should be on its base: base + strength · ΔW, a strength above 0.

    Turn an adapter that was trained towards the forget set round first (``negate``).

    Args:
        adapter: the direction.
        probe: the base, and how to measure.
        data: forget rows, and validation or retain rows for the floor; holdout rows for the target.
        limits: of the search.
        report: told of every measurement.

    Raises:
        AdapterError: the adapter is for another base or has fewer layers than groups; or no strength keeps the floor.
        DataError: a set cannot be used.
    """
    limits = limits or Limits()
    groups = layer_groups(adapter, limits.groups) if limits.groups > 1 else ()
    sets = probe.read(data)
    fitting = Fitting(probe.model, [adapter])
    meter = SampleMeter(sets.forget[: probe.rows], sets.validation, fitting.pad_token_id)
    with fitting.model.disable_adapter():
        before = meter(fitting.model, 0)
        holdout = float(meter.probabilities(fitting.model, sets.holdout).mean()) if sets.holdout else NEVER_SEEN
    target = limits.target or holdout
    floor = None if before.retain is None else before.retain * limits.utility_floor
    known: dict[tuple[float, ...], Measurement] = {}

    def measure(strengths: tuple[float, ...]) -> Measurement:
        if strengths not in known:
            fitting.wear(0, _by_module(adapter, groups, strengths))
            known[strengths] = meter(fitting.model, 0)
            report(strengths, known[strengths])
        return known[strengths]

    one = search_strength(
        lambda strength: measure((strength,) * max(1, len(groups))),
        target=target,
        floor=floor,
        maximum=limits.maximum,
        tries=limits.tries,
    )
    strengths = (one,) * max(1, len(groups))
    if groups:
        strengths = coordinate_search(
            measure, strengths, target=target, floor=floor, maximum=limits.maximum, rounds=limits.rounds
        )
    if not any(strengths):
        raise AdapterError(
            f"no strength down to {limits.maximum / 2**limits.tries:.3g} keeps the retain probability at "
            f"{floor if floor is None else round(floor, 3)}: lower the floor, lower the maximum so that smaller ones are "
            "tried, or check the direction (an adapter trained towards the forget set is subtracted)."
        )
    result = scale_groups(adapter, groups, strengths) if groups else scale(adapter, strengths[0])
    return Found(result, groups, strengths, before, measure(strengths), target, floor)


def _by_module(adapter: Adapter, groups: tuple[tuple[int, ...], ...], strengths: tuple[float, ...]) -> dict[str, float]:
    return module_strengths(adapter, groups, strengths) if groups else dict.fromkeys(adapter.modules, strengths[0])
