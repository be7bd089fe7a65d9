"""Search the strength of an adapter, one for all layers or one per group of layers, under a utility floor."""

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
from llm_forget.search.behaviour import AdaptedModel, Probe
from llm_forget.stop import NEVER_SEEN, Measurement, StopRule

Report = Callable[[tuple[float, ...], Measurement], None]


@dataclass(frozen=True)
class Limits:
    """Target and limits of a search.

    Attributes:
        target: forget probability to reach; None takes the probability of the holdout rows, or 0.1 without holdout rows.
        utility_floor: share of the retain probability to keep, from 0 to 1.
        maximum: largest strength to try.
        tries: bisection steps of the search for one strength.
        groups: number of layer groups with a strength each; 1 for one strength.
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
            wrong.append(f"target is {self.target}; give a probability between 0 and 1")
        if not 0 <= self.utility_floor <= 1:
            wrong.append(f"floor is {self.utility_floor}; give a share between 0 and 1")
        if not 0 < self.maximum < math.inf:
            wrong.append(f"maximum is {self.maximum}; give a number above 0")
        wrong += [
            f"{name} is {n}; give 1 or more" for name in ("tries", "groups", "rounds") if (n := getattr(self, name)) < 1
        ]
        if wrong:
            raise AdapterError("the search cannot start: " + "; ".join(wrong) + ".")


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        adapter: the adapter at these strengths, plain LoRA.
        groups: the groups of layers; empty if there is one strength for all.
        strengths: one per group, or a single one.
        before: the measurement of the base.
        after: the measurement with the adapter at these strengths.
        target: the forget probability to reach.
        floor: the retain probability to keep, or None without retain rows.
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
    """Improve strengths one at a time, up or down by a step that is halved if no coordinate improves.

    Candidates are compared by three criteria in this order: above the floor or not; lower forget probability, where values
    below the target count as the target; higher retain probability. The result is never worse than the start.

    Args:
        measure: maps strengths to a measurement.
        start: initial strengths, usually all equal.
        target: forget probability to reach, or None.
        floor: retain probability to keep, or None.
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
    """A sort key for measurements: smaller is better."""
    broken = not StopRule(target, floor, 1).above_floor(now)
    forget = math.inf if math.isnan(now.forget) else max(now.forget, target or 0.0)
    return broken, forget, -(now.retain or 0.0)


def search_adapter(
    adapter: Adapter,
    probe: Probe,
    data: UnlearnData,
    limits: Limits | None = None,
    report: Report = lambda *_: None,
) -> SearchResult:
    """Find the strength s > 0 of an adapter for base + s·ΔW.

    An adapter that was trained on the forget set must be negated first (``negate``).

    Args:
        adapter: the adapter, which gives the direction.
        probe: the base, and how to measure.
        data: forget rows; validation or retain rows for the floor; holdout rows for the target.
        limits: target and limits of the search.
        report: called with each measurement.

    Raises:
        AdapterError: the adapter is for another base or has fewer layers than groups, or no strength keeps the floor.
        DataError: a set cannot be used.
    """
    limits = limits or Limits()
    groups = layer_groups(adapter, limits.groups) if limits.groups > 1 else ()
    sets = probe.read(data)
    adapted = AdaptedModel(probe.model, [adapter])
    meter = SampleMeter(sets.forget[: probe.rows], sets.validation, adapted.pad_token_id)
    with adapted.model.disable_adapter():
        before = meter(adapted.model, 0)
        holdout = float(meter.probabilities(adapted.model, sets.holdout).mean()) if sets.holdout else NEVER_SEEN
    target = limits.target or holdout
    floor = None if before.retain is None else before.retain * limits.utility_floor
    known: dict[tuple[float, ...], Measurement] = {}

    def measure(strengths: tuple[float, ...]) -> Measurement:
        if strengths not in known:
            adapted.activate(0, _by_module(adapter, groups, strengths))
            known[strengths] = meter(adapted.model, 0)
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
            f"{floor if floor is None else round(floor, 3)}: lower the floor, lower the maximum to try smaller "
            "strengths, or check the direction (an adapter that was trained on the forget set must be subtracted)."
        )
    result = scale_groups(adapter, groups, strengths) if groups else scale(adapter, strengths[0])
    return SearchResult(result, groups, strengths, before, measure(strengths), target, floor)


def _by_module(adapter: Adapter, groups: tuple[tuple[int, ...], ...], strengths: tuple[float, ...]) -> dict[str, float]:
    return module_strengths(adapter, groups, strengths) if groups else dict.fromkeys(adapter.modules, strengths[0])
