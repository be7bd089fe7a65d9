"""Test adapter subtraction: the loss, the search for the strength on known curves, and the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.errors import RecipeError
from llm_forget.methods.adapter_subtraction import AdapterSubtraction, adapter_subtraction_loss, search_strength, share
from llm_forget.stop import Measurement

MAXIMUM, TRIES = 8.0, 12
RESOLUTION = MAXIMUM / 2**TRIES


def curve(forget_rate: float, retain_rate: float | None) -> Callable[[float], Measurement]:
    """Return a measurement with probabilities exp(−rate · strength); strength ln(1/p)/rate reaches p."""

    def measure(strength: float) -> Measurement:
        retain = None if retain_rate is None else math.exp(-retain_rate * strength)
        return Measurement(0, math.exp(-forget_rate * strength), retain)

    return measure


def test_loss_computed_by_hand() -> None:
    """Tokens of probability ½ and ⅛: −(ln ½ + ln ⅛)/2 = 2 ln 2; a single one of ¼: ln 4."""
    logps = torch.tensor([[0.5, 0.125], [0.25, 1.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    assert adapter_subtraction_loss(logps, mask).tolist() == pytest.approx([2 * math.log(2), math.log(4)])


def test_finds_the_smallest_strength_that_reaches_the_target() -> None:
    """exp(−λ) = 0.1 at λ = ln 10 = 2.3026. The retain probability is then exp(−0.01 · 2.3) = 0.977, above the floor."""
    found = search_strength(curve(1.0, 0.01), target=0.1, floor=0.9, maximum=MAXIMUM, tries=TRIES)
    assert math.log(10) <= found <= math.log(10) + RESOLUTION


def test_stops_at_the_floor_if_the_target_needs_more() -> None:
    """The target needs ln 10 = 2.30; the floor allows ln(1/0.8)/0.2 = 1.116, the largest strength above the floor."""
    found = search_strength(curve(1.0, 0.2), target=0.1, floor=0.8, maximum=MAXIMUM, tries=TRIES)
    edge = math.log(1 / 0.8) / 0.2
    assert edge - RESOLUTION <= found <= edge


@pytest.mark.parametrize(("target", "floor"), [(0.1, 0.5), (None, 0.5), (0.1, None), (None, None)])
def test_takes_the_maximum_if_no_limit_is_reached(target: float | None, floor: float | None) -> None:
    assert search_strength(curve(0.1, 0.01), target=target, floor=floor, maximum=MAXIMUM, tries=TRIES) == MAXIMUM


def test_without_a_target_it_goes_to_the_floor() -> None:
    found = search_strength(curve(1.0, 0.1), target=None, floor=0.6, maximum=MAXIMUM, tries=TRIES)
    edge = math.log(1 / 0.6) / 0.1
    assert edge - RESOLUTION <= found <= edge


def test_non_finite_numbers_count_as_below_the_floor() -> None:
    def measure(strength: float) -> Measurement:
        return curve(0.1, 0.01)(strength) if strength < 3 else Measurement(0, math.nan, math.nan)

    found = search_strength(measure, target=0.1, floor=0.5, maximum=MAXIMUM, tries=TRIES)
    assert 3 - RESOLUTION <= found < 3


@given(
    forget=st.floats(0.01, 5),
    retain=st.none() | st.floats(0, 5),
    target=st.none() | st.floats(0.01, 0.99),
    floor=st.none() | st.floats(0.01, 0.99),
    tries=st.integers(1, 12),
)
@settings(deadline=None)
def test_never_below_the_floor_and_never_more_than_needed(
    forget: float, retain: float | None, target: float | None, floor: float | None, tries: int
) -> None:
    if retain is None:
        floor = None
    measure = curve(forget, retain)
    asked: list[float] = []

    def counted(strength: float) -> Measurement:
        asked.append(strength)
        return measure(strength)

    found = search_strength(counted, target=target, floor=floor, maximum=MAXIMUM, tries=tries)
    now, step = measure(found), MAXIMUM / 2**tries
    assert 0 <= found <= MAXIMUM
    assert floor is None or (now.retain is not None and now.retain >= floor)
    assert len(asked) <= tries + 2
    if target is not None and now.forget <= target and found > step:
        assert measure(found - step).forget > target, "one step of the search less would have been enough"
    if found < MAXIMUM - step and not (target is not None and now.forget <= target):
        further = measure(found + step)
        assert floor is not None, "nothing held it back"
        assert further.retain is not None
        assert further.retain < floor, "it stopped short of both edges"


@dataclass
class FakeSession:
    """Stand-in for a model with one number, the sum of the strengths of its rounds. Healing reduces it."""

    target: float | None = 0.1
    floor: float | None = 0.9
    retain_rate: float | None = 0.2
    steps: int = 12
    healing: float = 0.0
    total: float = 0.0
    change: float = 0.0
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def train_towards(self, steps: int) -> None:
        self.total, self.change = self.total + self.change, 0.0
        self.log.append(("towards", steps))

    def leave_shared(self, steps: int) -> None:
        self.log.append(("leave shared", steps))

    def set_strength(self, strength: float) -> None:
        self.change = strength

    def measure(self) -> Measurement:
        return curve(1.0, self.retain_rate)(self.total + self.change)

    def heal(self, steps: int, learning_rate: float | None) -> None:
        self.total -= self.healing
        self.log.append(("heal", steps, learning_rate))

    def settled(self, now: Measurement) -> bool:
        self.log.append(("settled", round(now.forget, 6)))
        return self.target is not None and now.forget <= self.target


def once(**options: Any) -> AdapterSubtraction:
    return AdapterSubtraction(**{"rounds": 1, "strength": None, "maximum": MAXIMUM, "tries": TRIES, **options})


def test_one_round_searches_below_the_utility_floor_and_heals_the_result() -> None:
    """The floor of the search is 0.9 · 0.5 = 0.45 (λ = 3.99), so the target (λ = 2.303, retain 0.63) is reached."""
    session = FakeSession()
    details = once(search_floor=0.5).finish(session)
    assert math.log(10) <= details["strength"] <= math.log(10) + RESOLUTION
    assert details["forget_after_subtraction"] == pytest.approx(math.exp(-details["strength"]))
    assert details["retain_after_subtraction"] == pytest.approx(math.exp(-0.2 * details["strength"]))
    assert session.log[:2] == [("towards", 12), ("heal", 12, AdapterSubtraction.heal_learning_rate)]


def test_one_round_keeps_the_search_above_its_own_floor() -> None:
    assert once(search_floor=1.0).finish(FakeSession())["retain_after_subtraction"] >= 0.9


def test_one_round_uses_a_given_strength_unchanged() -> None:
    session = FakeSession()
    details = once(strength=1.5, heal_steps=4, heal_learning_rate=0.01).finish(session)
    assert details["strength"] == 1.5
    assert session.log == [("towards", 12), ("heal", 4, 0.01), ("settled", round(math.exp(-1.5), 6))]


def test_without_retain_rows_or_steps_there_is_no_healing() -> None:
    for session, method in (
        (FakeSession(floor=None, retain_rate=None), once()),
        (FakeSession(), once(heal_steps=0)),
    ):
        details = method.finish(session)
        assert [kind for kind, *_ in session.log] == ["towards", "settled"]
        assert session.change == details["strength"], "the model is left at the strength that is reported"
        assert ("retain_after_subtraction" in details) == (session.retain_rate is not None)


def test_rounds_share_the_steps_and_are_judged_after_healing() -> None:
    """Each round adds ½ and its healing removes 0.1: after round i the forget probability is exp(−0.4 i)."""
    session = FakeSession(steps=7, healing=0.1)
    details = AdapterSubtraction(strength=0.5, rounds=3, heal_steps=5, heal_learning_rate=None).finish(session)
    assert [entry[:2] for entry in session.log if entry[0] != "settled"] == [
        ("towards", 3),
        ("heal", 2),
        ("towards", 2),
        ("heal", 2),
        ("towards", 2),
        ("heal", 1),
    ]
    judged = [value for kind, value, *_ in session.log if kind == "settled"]
    assert judged == pytest.approx([math.exp(-0.4), math.exp(-0.8), math.exp(-1.2)], abs=1e-6)
    assert details["rounds"] == 3
    assert details["forget_after_subtraction"] == pytest.approx(math.exp(-1.3))


def test_the_projection_takes_as_many_steps_as_the_training_before_it() -> None:
    session = FakeSession(steps=5)
    AdapterSubtraction(strength=0.1, rounds=2, project=True).finish(session)
    assert [entry[:2] for entry in session.log if entry[0] in ("towards", "leave shared")] == [
        ("towards", 3),
        ("leave shared", 3),
        ("towards", 2),
        ("leave shared", 2),
    ]


def test_the_projection_needs_retain_rows() -> None:
    session = FakeSession(floor=None, retain_rate=None)
    with pytest.raises(RecipeError, match=r"add data\.retain"):
        AdapterSubtraction(project=True).finish(session)
    assert not session.log, "nothing was trained"


def test_rounds_end_when_the_target_is_reached() -> None:
    """exp(−1 · 3) = 0.05 is below the target of 0.1, so the third of five rounds is the last."""
    session = FakeSession(steps=10)
    assert AdapterSubtraction(strength=1.0, rounds=5).finish(session)["rounds"] == 3
    assert sum(kind == "towards" for kind, *_ in session.log) == 3


@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_add_up_and_differ_by_at_most_one(total: int, parts: int) -> None:
    shares = share(total, parts)
    assert (sum(shares), len(shares)) == (total, parts)
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"strength": None, "rounds": 2}, {"strength": -1.0}, {"heal_steps": -1}, {"tries": 0}]
)
def test_refuses_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="adapter_subtraction: "):
        AdapterSubtraction(**options)
