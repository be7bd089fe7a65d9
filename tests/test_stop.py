"""Test the stop rule on sequences of measurements; it is a pure function, so every case is a list of numbers."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.stop import Measurement, StopRule, Verdict

GO, KEEP, REACHED, BROKEN = Verdict.GO_ON, Verdict.KEEP, Verdict.REACHED, Verdict.BROKEN


def judge(rule: StopRule, *pairs: tuple[float, float | None]) -> list[Verdict]:
    return [rule.judge(Measurement(step, forget, retain)) for step, (forget, retain) in enumerate(pairs)]


def rule(target: float | None = 0.1, floor: float | None = 0.9, patience: int = 2) -> StopRule:
    return StopRule(target, floor, patience)


def test_reached_at_the_first_state_at_the_target_above_the_floor() -> None:
    it = rule()
    assert judge(it, (0.95, 0.95), (0.5, 0.93), (0.1, 0.9)) == [KEEP, KEEP, REACHED]
    assert it.best == Measurement(2, 0.1, 0.9)


def test_forgetting_below_the_floor_is_not_reached_and_never_the_best() -> None:
    it = rule(patience=5)
    assert judge(it, (0.95, 0.95), (0.01, 0.89)) == [KEEP, GO]
    assert it.best is not None
    assert it.best.step == 0


def test_a_recovered_dip_does_not_stop() -> None:
    it = rule()
    verdicts = judge(it, (0.95, 0.95), (0.4, 0.4), (0.2, 0.5), (0.12, 0.7), (0.09, 0.85), (0.08, 0.91))
    assert verdicts == [KEEP, GO, GO, GO, GO, REACHED]


def test_stops_after_patience_checks_below_the_floor() -> None:
    it = rule(patience=3)
    assert judge(it, (0.95, 0.95), (0.4, 0.8), (0.3, 0.7), (0.2, 0.7)) == [KEEP, GO, GO, BROKEN]


def test_patience_counts_consecutive_checks() -> None:
    """Below, below, above, below, below: a patience of 3 does not stop, a patience of 2 stops at the second check."""
    numbers = [(0.95, 0.95), (0.9, 0.8), (0.9, 0.7), (0.96, 0.92), (0.9, 0.8), (0.9, 0.7)]
    assert BROKEN not in judge(rule(patience=3), *numbers)
    assert judge(rule(patience=2), *numbers[:3])[-1] is BROKEN


def test_patience_of_one_stops_at_the_first_check_below() -> None:
    assert judge(rule(patience=1), (0.95, 0.95), (0.5, 0.89)) == [KEEP, BROKEN]


def test_nan_counts_as_below_the_floor() -> None:
    it = rule(patience=2)
    assert judge(it, (0.95, 0.95), (math.nan, math.nan), (math.nan, math.nan)) == [KEEP, GO, BROKEN]
    assert it.best is not None
    assert it.best.step == 0


def test_values_after_nan_are_no_recovery() -> None:
    assert judge(rule(patience=2), (0.95, 0.95), (0.5, math.nan), (0.5, 0.3))[-1] is BROKEN


def test_an_unmeasured_retain_set_is_below_a_floor() -> None:
    assert judge(rule(patience=1), (0.95, None)) == [BROKEN]


@pytest.mark.parametrize("nan_first", [True, False])
def test_forget_nan_without_a_floor_is_never_the_best(nan_first: bool) -> None:
    it = rule(floor=None)
    first, second = ((math.nan, None), (0.5, None)) if nan_first else ((0.5, None), (math.nan, None))
    judge(it, first, second)
    assert it.best is not None
    assert it.best.forget == 0.5


def test_the_best_is_the_lowest_above_the_floor_and_ties_go_to_the_higher_retain_value() -> None:
    it = rule(target=None)
    assert judge(it, (0.9, 0.95), (0.5, 0.92), (0.6, 0.99), (0.5, 0.94), (0.5, 0.93), (0.1, 0.5)) == [
        KEEP, KEEP, GO, KEEP, GO, GO,
    ]  # fmt: skip
    assert it.best == Measurement(3, 0.5, 0.94)


def test_the_passed_over_state_forgot_more_below_the_floor() -> None:
    """The best is 0.6 at 0.96. Below the floor of 0.9 are 0.3, 0.04 and 0.7; the last one below 0.6 is 0.04."""
    rule = StopRule(0.01, 0.9, 9)
    states = [(0.9, 1.0), (0.6, 0.96), (0.3, 0.5), (0.04, 0.85), (0.7, 0.8), (0.65, 0.95)]
    for step, (forget, retain) in enumerate(states):
        rule.judge(Measurement(step, forget, retain))
    assert rule.passed_over() == Measurement(3, 0.04, 0.85)
    assert StopRule(0.01, 0.9, 9).passed_over() is None
    rule.floor = None
    assert rule.passed_over() is None


def test_without_a_target_nothing_is_reached() -> None:
    assert judge(rule(target=None, floor=None), (0.5, None), (0.0, None)) == [KEEP, KEEP]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    st.none() | st.floats(0.05, 0.9),
    st.floats(0, 1),
    st.integers(1, 5),
)
def test_equals_the_definition(
    numbers: list[tuple[float, float]], target: float | None, floor: float, patience: int
) -> None:
    it = rule(target, floor, patience)
    seen: list[tuple[float, float]] = []
    for step, (forget, retain) in enumerate(numbers):
        verdict = it.judge(Measurement(step, forget, retain))
        seen.append((forget, retain))
        good = [pair for pair in seen if pair[1] >= floor]
        assert (it.best is None) == (not good)
        if it.best is not None:
            assert it.best.retain is not None
            assert it.best.retain >= floor
            lowest = min(max(pair[0], target or 0.0) for pair in good)
            assert max(it.best.forget, target or 0.0) == lowest
        assert (verdict is REACHED) == (target is not None and forget <= target and retain >= floor)
        if verdict is BROKEN:
            last = [pair[1] for pair in seen[-patience:]]
            assert len(last) == patience
            assert all(value < floor for value in last)
            assert all(later <= earlier for earlier, later in itertools.pairwise(last))
        if verdict in (REACHED, BROKEN):
            break


@pytest.mark.parametrize(
    ("target", "before", "known"), [(0.1, 0.9, True), (0.1, 0.1, False), (None, 0.9, None), (0.1, math.nan, True)]
)
def test_a_set_at_the_target_before_training_was_not_known(
    target: float | None, before: float, known: bool | None
) -> None:
    it = rule(target)
    assert it.known_before is None
    judge(it, (before, 0.95), (0.01, 0.95))
    assert it.known_before is known


def test_neighbours_have_a_floor_of_their_own() -> None:
    """The second state keeps the retain rows and not the neighbours; the third keeps both and is the best."""
    it = StopRule(0.05, 0.8, 3, neighbour_floor=0.5)
    states = [(0.9, 0.9, 0.9), (0.1, 0.9, 0.4), (0.3, 0.85, 0.6), (0.01, 0.9, 0.45)]
    verdicts = [
        it.judge(Measurement(i, forget, retain, neighbour=near)) for i, (forget, retain, near) in enumerate(states)
    ]
    assert verdicts == [Verdict.KEEP, Verdict.GO_ON, Verdict.KEEP, Verdict.GO_ON]
    assert it.best is not None
    assert it.best.step == 2
    passed = it.passed_over()
    assert passed is not None
    assert passed.step == 3
    again = StopRule(0.05, 0.8, 3, neighbour_floor=0.5)
    again.load_state_dict(it.state_dict())
    assert again.history == it.history
