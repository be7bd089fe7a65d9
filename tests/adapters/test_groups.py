"""Test one strength per group of layers against groups and ΔW computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from adapter_examples import SHAPES, adapters, change, largest, random_adapter, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.adapters.arithmetic import delta, scale
from llm_forget.adapters.groups import layer_groups, layer_of, scale_groups
from llm_forget.adapters.lora import Adapter, Factors, load_adapter, save_adapter
from llm_forget.errors import AdapterError

# 0, or large enough that its product with a weight does not underflow in fp32
numbers = st.just(0.0) | st.floats(-4, 4).filter(lambda strength: abs(strength) > 1e-3)
quickly = settings(max_examples=30, deadline=None)


def deep(layers: list[int]) -> Adapter:
    """Return an adapter with one 2 × 2 module per layer."""
    modules = {f"model.layers.{n}.self_attn.q_proj": Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0) for n in layers}
    return Adapter({"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}, modules)


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], 3, ((0, 1), (2, 3), (4, 5))),
        ([0, 1, 2, 3, 4], 2, ((0, 1), (2, 3, 4))),
        ([3, 7, 20], 3, ((3,), (7,), (20,))),
        ([0, 1], 1, ((0, 1),)),
    ],
)
def test_groups_by_hand(layers: list[int], count: int, expected: tuple[tuple[int, ...], ...]) -> None:
    """Group boundaries are at round(i · n / count): 5 layers in 2 groups split at round(2.5) = 2."""
    assert layer_groups(deep(layers), count) == expected


@given(layers=st.sets(st.integers(0, 60), min_size=1, max_size=40), data=st.data())
def test_groups_hold_every_layer_once_and_their_sizes_differ_by_at_most_one(
    layers: set[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(layers)))
    groups = layer_groups(deep(sorted(layers)), count)
    assert [layer for group in groups for layer in group] == sorted(layers)
    sizes = [len(group) for group in groups]
    assert len(groups) == count
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@quickly
@given(adapter=adapters(), strengths=st.tuples(numbers, numbers))
def test_each_layer_has_its_own_strength(adapter: Adapter, strengths: tuple[float, float]) -> None:
    result = scale_groups(adapter, ((0,), (1,)), strengths)
    assert result.modules.keys() == adapter.modules.keys()
    for module, factors in result.modules.items():
        wanted = strengths[layer_of(module)] * change(adapter, module)
        assert largest(delta(result, module).double() - wanted) <= 1e-5 * max(map(abs, strengths)) * scale_of(adapter)
        assert factors.scaling == 1.0
        assert factors.rank == adapter.modules[module].rank


@quickly
@given(adapter=adapters(), strength=numbers)
def test_equal_group_strengths_equal_a_single_strength(adapter: Adapter, strength: float) -> None:
    grouped, whole = scale_groups(adapter, ((0,), (1,)), (strength, strength)), scale(adapter, strength)
    for module in adapter.modules:
        difference = largest(delta(grouped, module) - delta(whole, module))
        assert difference <= 1e-6 * abs(strength) * scale_of(adapter)
    assert grouped.config == whole.config


def test_strength_zero_drops_the_layers_and_the_result_is_a_plain_adapter(tmp_path) -> None:
    result = scale_groups(random_adapter(ranks=(4, 2), rslora=True), ((0,), (1,)), (2.0, 0.0))
    again = load_adapter(save_adapter(result, tmp_path / "out"))
    for module in SHAPES:
        assert torch.equal(delta(again, module), delta(result, module))
        assert bool(delta(again, module).any()) == (layer_of(module) == 0)


def test_layer_numbers_are_read_from_names() -> None:
    assert layer_of("model.layers.11.mlp.down_proj") == 11
    assert layer_of("transformer.h.3.attn.c_attn") == 3
    assert layer_of("model.layers.2.experts.5.w1") == 2


def test_invalid_groups_are_refused() -> None:
    adapter = random_adapter()
    for count in (0, 3):
        with pytest.raises(AdapterError, match=rf"{count} groups given; the adapter changes 2 layers, so give 1 to 2"):
            layer_groups(adapter, count)
    with pytest.raises(AdapterError, match="lm_head belongs to no numbered layer"):
        layer_of("lm_head")
    for strengths in [(1.0,), (1.0, math.nan)]:
        with pytest.raises(AdapterError, match="one finite number per group"):
            scale_groups(adapter, ((0,), (1,)), strengths)
    with pytest.raises(AdapterError, match="leave out layer 1"):
        scale_groups(adapter, ((0,),), (1.0,))
    with pytest.raises(AdapterError, match="repeat a layer"):
        scale_groups(adapter, ((0, 1), (1,)), (1.0, 2.0))
