"""Test that arithmetic on adapters is arithmetic on ΔW, and that PEFT reads the results the same way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_examples import (
    BASE,
    SHAPES,
    adapters,
    change,
    largest,
    logits,
    random_adapter,
    save_tiny_llama,
    scale_of,
    trained_adapter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.adapters.arithmetic import (
    combine,
    delta,
    needed_rank,
    negate,
    norm,
    relative_distance,
    scale,
    truncate,
)
from llm_forget.adapters.lora import Adapter, BaseRecord, Factors, load_adapter, save_adapter
from llm_forget.adapters.lora_config import rank_and_scaling
from llm_forget.errors import AdapterError

weights = st.floats(-4, 4).filter(lambda w: abs(w) > 1e-3)
quickly = settings(max_examples=30, deadline=None)


def subtract(first: Adapter, second: Adapter, **options: bool) -> Adapter:
    return combine([first, second], [1.0, -1.0], **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("base"))


@quickly
@given(parts=st.lists(st.tuples(adapters(), weights), min_size=1, max_size=3))
def test_combine_is_the_weighted_sum_of_deltas(parts):
    result = combine([a for a, _ in parts], [w for _, w in parts])
    bound = 1e-5 * max(abs(w) * scale_of(a) for a, w in parts)
    assert result.modules.keys() == {m for a, _ in parts for m in a.modules}
    for module, factors in result.modules.items():
        expected = sum(w * change(a, module) for a, w in parts)
        assert largest(delta(result, module).double() - expected) <= bound
        assert factors.scaling == 1.0
        assert factors.A.dtype == factors.B.dtype == torch.float32
        assert factors.rank == sum(a.modules[module].rank for a, _ in parts if module in a.modules)
        assert rank_and_scaling(result.config, module) == (factors.rank, 1.0)


@quickly
@given(adapter=adapters(), strength=weights)
def test_scale_keeps_the_rank_and_multiplies(adapter, strength):
    result = scale(adapter, strength)
    for module, factors in adapter.modules.items():
        wanted = strength * change(adapter, module)
        assert largest(delta(result, module).double() - wanted) <= 1e-5 * abs(strength) * scale_of(adapter)
        assert result.modules[module].rank == factors.rank


@quickly
@given(adapter=adapters())
def test_negating_twice_gives_the_same_bits(adapter):
    once, twice = negate(adapter), negate(negate(adapter))
    assert twice.config == once.config == adapter.config
    for module, factors in adapter.modules.items():
        assert torch.equal(twice.modules[module].B.view(torch.uint8), factors.B.view(torch.uint8))
        assert torch.equal(once.modules[module].A.view(torch.uint8), factors.A.view(torch.uint8))
        assert torch.equal(delta(once, module), -delta(adapter, module))
        assert once.modules[module].B.dtype == factors.B.dtype


@quickly
@given(adapter=adapters())
def test_x_minus_x_is_zero(adapter):
    nothing = subtract(adapter, adapter)
    for module in adapter.modules:
        assert largest(delta(nothing, module)) <= 1e-6 * scale_of(adapter)
    cut = truncate(nothing, 1)
    assert norm(cut.adapter) <= 1e-6 * scale_of(adapter)
    assert cut.residual <= 1e-5  # otherwise rounding errors would be compared with rounding errors


@quickly
@given(first=adapters(), second=adapters(), third=adapters())
def test_the_order_of_stacking_does_not_matter(first, second, third):
    one, other = combine([combine([first, second], [1, 1]), third], [1, 1]), combine([third, first, second], [1, 1, 1])
    bound = 1e-5 * max(map(scale_of, (first, second, third)))
    for module in one.modules:
        assert largest(delta(one, module) - delta(other, module)) <= bound


@quickly
@given(first=adapters(), second=adapters())
def test_svd_at_the_summed_rank_is_exact_and_below_it_is_the_best(first, second):
    difference = subtract(first, second)
    exact = truncate(difference, first.rank + second.rank)
    assert exact.residual == 0.0
    rank = max(1, difference.rank // 2)
    cut = truncate(difference, rank)
    lost = kept = 0.0
    for module in difference.modules:
        bound = 1e-5 * max(scale_of(first), scale_of(second))
        assert largest(delta(exact.adapter, module) - delta(difference, module)) <= bound
        values = torch.linalg.svdvals(change(difference, module))
        tail, whole = (
            float(values[rank:].norm()),
            max(float(values.norm()), bound),
        )  # both arguments may be the same adapter
        assert cut.per_module[module] == pytest.approx(tail / whole, abs=1e-5)
        error = float((change(cut.adapter, module) - change(difference, module)).norm())
        assert error == pytest.approx(tail, abs=bound)
        assert cut.adapter.modules[module].rank <= rank
        lost, kept = lost + tail**2, kept + whole**2
    assert cut.residual == pytest.approx(math.sqrt(lost / kept), abs=1e-5)


def test_needed_rank_is_below_the_stored_rank():
    thin = random_adapter(ranks=(3,))
    wide = combine([thin, thin, thin], [1, 2, -0.5])
    assert wide.rank == 9
    cut = truncate(wide, 3)
    assert cut.residual < 1e-6
    for module in SHAPES:
        assert largest(delta(cut.adapter, module).double() - 2.5 * change(thin, module)) < 1e-5 * scale_of(thin)
    assert needed_rank(wide, 1e-4) == 3
    assert needed_rank(wide, 1.0) == 1
    assert needed_rank(thin, 0.0) == 3


@quickly
@given(adapter=adapters(max_rank=12), tolerance=st.floats(0.01, 0.9))
def test_needed_rank_is_the_lowest_within_the_tolerance(adapter, tolerance):
    rank = needed_rank(adapter, tolerance)
    assert truncate(adapter, rank).residual <= tolerance
    assert rank == 1 or truncate(adapter, rank - 1).residual > tolerance


@quickly
@given(first=adapters(), second=adapters())
def test_norm_and_distance_equal_those_of_dense_deltas(first, second):
    modules = first.modules.keys() | second.modules.keys()
    size = math.sqrt(sum(float(change(second, m).norm()) ** 2 for m in modules))
    apart = math.sqrt(sum(float((change(first, m) - change(second, m)).norm()) ** 2 for m in modules))
    assert norm(second) == pytest.approx(size, rel=1e-9)
    # For nearly equal adapters, only the fp32 rounding of the difference's factors remains.
    rounding = 2**-24 * (size + math.sqrt(sum(float(change(first, m).norm()) ** 2 for m in modules))) / size
    assert relative_distance(first, second) == pytest.approx(apart / size, rel=1e-4, abs=rounding)


def test_distance_from_zero():
    some = random_adapter()
    zero = scale(some, 0.0)
    assert relative_distance(some, zero) == math.inf
    assert relative_distance(zero, zero) == 0.0
    assert relative_distance(zero, some) == pytest.approx(1.0)


def test_targets_are_joined_and_match_no_other_module(base, tmp_path):
    first = load_adapter(trained_adapter(base, tmp_path / "a", target_modules=["q_proj"], layers_to_transform=[0]))
    second = load_adapter(trained_adapter(base, tmp_path / "b", target_modules=["up_proj"]))
    joined = combine([first, second], [1, 1])
    assert joined.config["target_modules"] == ["model.layers.0.self_attn.q_proj", "up_proj"]
    again = load_adapter(save_adapter(joined, tmp_path / "c"))
    assert sorted(again.modules) == [
        "model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


SETTINGS = [
    {},
    {"r": 3, "use_rslora": True},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 5}},
    {"target_modules": "all-linear", "r": 2},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
]


def merged_with(base: Path, adapter: Adapter, strength: float, folder: Path) -> Path:
    """Add ``strength`` times ΔW to the weights of the base by hand, in fp64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, factors in adapter.modules.items():
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(weight.double() + strength * factors.scaling * (factors.B.double() @ factors.A.double()))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_peft_applies_the_negated_adapter_as_base_minus_effect(base, tmp_path, config):
    adapter = load_adapter(trained_adapter(base, tmp_path / "a", **config))
    wanted = logits(merged_with(base, adapter, -1.0, tmp_path / "by_hand"))
    negated = logits(base, save_adapter(negate(adapter), tmp_path / "n"))
    assert largest(negated - wanted) < 1e-5
    assert largest(negated - logits(base)) > 1e-3
    assert largest(negated - logits(base, tmp_path / "a")) > 1e-3


def test_peft_applies_good_minus_bad(base, tmp_path):
    good = load_adapter(trained_adapter(base, tmp_path / "good", seed=1, **SETTINGS[1]))
    bad = load_adapter(trained_adapter(base, tmp_path / "bad", seed=2, **SETTINGS[2]))
    middle = merged_with(base, good, 1.0, tmp_path / "middle")
    wanted = logits(merged_with(middle, bad, -0.5, tmp_path / "by_hand"))
    result = combine([good, bad], [1.0, -0.5])
    assert largest(logits(base, save_adapter(result, tmp_path / "result")) - wanted) < 1e-5
    assert largest(logits(base, save_adapter(truncate(result, 64).adapter, tmp_path / "svd")) - wanted) < 1e-5


def test_bad_arguments_are_refused():
    adapter = random_adapter()
    with pytest.raises(AdapterError, match="0 adapters and 0 weights"):
        combine([], [])
    with pytest.raises(AdapterError, match="2 adapters and 1 weights"):
        combine([adapter, adapter], [1.0])
    for bad in (math.nan, math.inf):
        with pytest.raises(AdapterError, match="finite"):
            scale(adapter, bad)
    with pytest.raises(AdapterError, match="rank 0"):
        truncate(adapter, 0)
    with pytest.raises(AdapterError, match=r"did you mean model\.layers\.0\.self_attn\.q_proj"):
        delta(adapter, "model.layers.0.self_attn.q_prj")


def test_different_bases_are_refused():
    mine = random_adapter()

    def based(**record: str | None) -> Adapter:
        return replace(random_adapter(seed=1), base=BaseRecord(**record))

    with pytest.raises(AdapterError, match=r"different bases: the weights of org/tiny at abc, org/tiny .*222222222222"):
        subtract(mine, based(name="org/tiny", digest="2" * 64))
    with pytest.raises(AdapterError, match="222222222222"):
        subtract(mine, based(name="org/tiny", digest="2" * 64), assume_same_base=True)
    assert subtract(mine, based(name="elsewhere", digest=BASE.digest)).base == BASE
    with pytest.raises(AdapterError, match=r"org/tiny at abc, org/large.*assume_same_base"):
        subtract(mine, based(name="org/large"))
    with pytest.raises(AdapterError, match="org/tiny at def"):
        subtract(mine, based(name="org/tiny", revision="def"))
    assert subtract(mine, based(name="org/large"), assume_same_base=True).base == BASE
    assert combine([based(name="x"), based(name="x")], [1, 1]).base == BaseRecord("x")
    name = "model.layers.0.self_attn.q_proj"
    wider = replace(mine, modules={**mine.modules, name: Factors(torch.ones(4, 21), torch.ones(24, 4), 2.0)})
    with pytest.raises(AdapterError, match=r"\(24, 20\) in one and \(24, 21\) in another"):
        combine([mine, wider], [1, 1])
