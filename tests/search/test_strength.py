"""Test the search for strengths on known curves and on a model that forgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unlearned_examples import World, make_world

from llm_forget.adapters.arithmetic import delta, negate, scale
from llm_forget.adapters.compose import compose
from llm_forget.adapters.groups import scale_groups
from llm_forget.adapters.lora import Adapter, BaseRecord, load_adapter
from llm_forget.config import ModelConfig, UnlearnData
from llm_forget.data.examples import DataSource
from llm_forget.errors import AdapterError
from llm_forget.model.load import load_model
from llm_forget.model.measure import answer_logps
from llm_forget.search.behaviour import AdaptedModel, Probe, compare_behaviour
from llm_forget.search.strength import Limits, coordinate_search, search_adapter
from llm_forget.stop import Measurement

pytestmark = pytest.mark.slow  # the shared fixture trains and unlearns a model


def curves(forget: tuple[float, ...], retain: tuple[float, ...]) -> Callable[[tuple[float, ...]], Measurement]:
    """Return a measurement with probabilities exp(−rates · strengths)."""

    def measure(strengths: tuple[float, ...]) -> Measurement:
        def at(rates: tuple[float, ...]) -> float:
            return math.exp(-sum(r * s for r, s in zip(rates, strengths, strict=True)))

        return Measurement(0, at(forget), at(retain))

    return measure


def test_strength_moves_from_the_layers_that_harm_to_those_that_help() -> None:
    """Group 1 only harms, and group 2 only helps.

    From (1, 1) with step ½: group 1 gets worse at 1½ and better at ½, then at 0; group 2 gets better at 1½, 2 and 2½;
    there exp(−2.5) = 0.082 is below the target of 0.1. Three rounds are enough.
    """
    measure = curves((0.0, 1.0), (0.1, 0.0))
    found = coordinate_search(measure, (1.0, 1.0), target=0.1, floor=0.5, maximum=8, rounds=3)
    assert found == (0.0, 2.5)


def test_the_floor_is_kept_while_forgetting() -> None:
    """The floor exp(−s₁ − s₂) ≥ exp(−2) means s₁ + s₂ ≤ 2; forgetting is exp(−s₁), so all strength goes to s₁."""
    measure = curves((1.0, 0.0), (1.0, 1.0))
    found = coordinate_search(measure, (1.0, 1.0), target=None, floor=math.exp(-2) - 1e-9, maximum=8, rounds=30)
    assert found == pytest.approx((2.0, 0.0), abs=1e-3)


def test_a_start_of_zero_still_moves() -> None:
    found = coordinate_search(curves((1.0,), (0.0,)), (0.0,), target=None, floor=0.5, maximum=8, rounds=1)
    assert found == (2.0,)


rates = st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))


@settings(deadline=None)
@given(
    forget=rates,
    retain=rates,
    start=st.floats(0, 4),
    target=st.none() | st.floats(0.01, 0.9),
    floor=st.none() | st.floats(0.01, 0.99),
    rounds=st.integers(1, 6),
)
def test_never_worse_than_the_start_and_within_bounds(
    forget: Any, retain: Any, start: float, target: float | None, floor: float | None, rounds: int
) -> None:
    measure, asked = curves(forget, retain), []

    def counted(strengths: tuple[float, ...]) -> Measurement:
        asked.append(strengths)
        return measure(strengths)

    first = (start,) * 3
    found = coordinate_search(counted, first, target=target, floor=floor, maximum=4, rounds=rounds)
    before, after = measure(first), measure(found)
    assert all(0 <= strength <= 4 for strengths in asked for strength in strengths)
    assert len(asked) <= 1 + rounds * 3 * 2
    enough = target or 0.0
    if floor is None or (before.retain is not None and before.retain >= floor):
        assert floor is None or (after.retain is not None and after.retain >= floor)
        assert max(after.forget, enough) <= max(before.forget, enough)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.5}, "target is 1.5"),
        ({"utility_floor": -0.1}, r"floor is -0\.1"),
        ({"maximum": math.inf}, "maximum is inf"),
        ({"tries": 0, "groups": 0}, "tries is 0; give 1 or more; groups is 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        Limits(**options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def probe_of(world: World) -> Probe:
    return Probe(ModelConfig(str(world.base), dtype="float32"))


def search(world: World, adapter: Adapter, limits: Limits, **more: str) -> Any:
    data = UnlearnData(
        DataSource(world.data("first")),
        retain=DataSource(world.data("retain")),
        **{name: DataSource(world.data(path)) for name, path in more.items()},
    )
    return search_adapter(adapter, probe_of(world), data, limits)


def probability(world: World, name: str, adapter: Adapter | None, scratch: Path) -> float:
    """Measure the probability by hand, with ΔW added to the weights of the base."""
    model, tokenizer = load_model(ModelConfig(str(world.base), dtype="float32"))
    if adapter is not None:
        with torch.no_grad():
            for module in adapter.modules:
                model.get_parameter(f"{module}.weight").add_(delta(adapter, module))
    sets = probe_of(world).read(UnlearnData(DataSource(world.data(name))))
    return float(answer_logps(model, sets.forget, tokenizer.pad_token_id)[1].mean())


def test_the_found_strength_gives_the_measured_probabilities(world: World, tmp_path: Path) -> None:
    adapter = load_adapter(world.adapter("first"))
    found = search(world, adapter, Limits(target=0.3, utility_floor=0.5, maximum=2, tries=5))
    assert found.groups == ()
    assert found.before.forget > 0.9
    assert found.after.forget <= 0.3
    assert found.after.retain >= found.floor == pytest.approx(0.5 * found.before.retain)
    assert 0 < found.strengths[0] < 2
    for module in adapter.modules:
        torch.testing.assert_close(delta(found.adapter, module), found.strengths[0] * delta(adapter, module))
    assert probability(world, "first", found.adapter, tmp_path) == pytest.approx(found.after.forget, abs=1e-4)
    weaker = scale(adapter, found.strengths[0] - 2 / 2**5)
    assert probability(world, "first", weaker, tmp_path) > 0.3


def test_groups_find_nothing_worse_than_one_strength(world: World, tmp_path: Path) -> None:
    adapter = load_adapter(world.adapter("first"))
    limits = Limits(target=0.02, utility_floor=0.8, maximum=2, tries=4, rounds=8)
    one = search(world, adapter, limits)
    two = search(world, adapter, Limits(**{**vars(limits), "groups": 2}))
    assert two.groups == ((0,), (1,))
    assert two.strengths != (two.strengths[0],) * 2
    assert two.after.retain >= two.floor
    assert max(two.after.forget, 0.02) <= max(one.after.forget, 0.02)
    wanted = scale_groups(adapter, two.groups, two.strengths)
    for module in adapter.modules:
        assert torch.equal(delta(two.adapter, module), delta(wanted, module))
    assert probability(world, "first", two.adapter, tmp_path) == pytest.approx(two.after.forget, abs=1e-4)


def test_the_target_is_the_probability_of_unseen_rows(world: World, tmp_path: Path) -> None:
    adapter = load_adapter(world.adapter("first"))
    found = search(world, adapter, Limits(utility_floor=0.0, maximum=1, tries=2), holdout="holdout")
    assert found.target == pytest.approx(probability(world, "holdout", None, tmp_path), abs=1e-4)
    assert search(world, adapter, Limits(utility_floor=0.0, maximum=1, tries=2)).target == 0.1


def test_searches_without_a_solution_are_refused(world: World) -> None:
    adapter = load_adapter(world.adapter("first"))
    with pytest.raises(
        AdapterError, match=r"no strength down to 4 keeps the retain probability at .*lower the maximum"
    ):
        search(world, adapter, Limits(utility_floor=1.0, maximum=8, tries=1))
    with pytest.raises(AdapterError, match="the adapter changes 2 layers"):
        search(world, adapter, Limits(groups=3))
    other = Adapter(adapter.config, adapter.modules, BaseRecord("other", digest="0" * 64))
    with pytest.raises(AdapterError, match="another model"):
        search(world, other, Limits())
    with pytest.raises(AdapterError, match="has no such layer"):
        AdaptedModel(
            probe_of(world).model, [Adapter(adapter.config, {"model.layers.9.x": next(iter(adapter.modules.values()))})]
        )


def test_behaviour_alone_and_together(world: World, tmp_path: Path) -> None:
    """Each number equals that of the weights with ΔW added; each adapter forgets its own set."""
    parts = [load_adapter(world.adapter(name)) for name in ("first", "second")]
    whole = compose(parts)
    sources = [DataSource(world.data(name)) for name in ("first", "second")]
    found = compare_behaviour(probe_of(world), parts, whole, sources, DataSource(world.data("retain")))
    rows = {None: found.base, 0: found.alone[0], 1: found.alone[1], "sum": found.together}
    for key, row in rows.items():
        adapter = None if key is None else whole if key == "sum" else parts[key]
        for measured, name in zip(row, ("first", "second"), strict=True):
            assert measured.forget == pytest.approx(probability(world, name, adapter, tmp_path), abs=1e-4)
        assert row[0].retain == pytest.approx(probability(world, "retain", adapter, tmp_path), abs=1e-4)
    assert min(now.forget for now in found.base) > 0.9
    assert found.alone[0][0].forget < 0.3
    assert found.alone[1][1].forget < 0.3
    own = [found.alone[0][0].forget, found.alone[1][1].forget]
    assert found.remembered == max(now.forget - alone for now, alone in zip(found.together, own, strict=True))
    before = found.base[0].retain
    losses = [before - row[0].retain for row in (*found.alone, found.together)]
    assert found.retain_lost == pytest.approx((losses[2], losses[0] + losses[1]))


def test_one_forget_set_for_all_adapters_and_no_retain_rows(world: World) -> None:
    parts = [load_adapter(world.adapter("first")), negate(load_adapter(world.adapter("second")))]
    source = DataSource(world.data("first"))
    found = compare_behaviour(probe_of(world), parts, compose(parts), [source], None)
    assert found.retain_lost is None
    assert found.remembered == found.together[0].forget - min(row[0].forget for row in found.alone)
    with pytest.raises(AdapterError, match="3 forget sets for 2 adapters"):
        compare_behaviour(probe_of(world), parts, compose(parts), [source] * 3, None)
