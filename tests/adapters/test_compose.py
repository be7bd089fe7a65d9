"""Test that composition is an order-independent sum, and that overlaps equal those of the dense changes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from adapter_examples import BASE, SHAPES, adapters, change, largest, random_adapter, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_forget.adapters.arithmetic import delta, negate
from llm_forget.adapters.compose import adapter_digest, compose, overlap, overlaps
from llm_forget.adapters.lora import Adapter, BaseRecord, Factors, save_adapter
from llm_forget.errors import AdapterError

quickly = settings(max_examples=30, deadline=None)
Q = "model.layers.0.self_attn.q_proj"


@quickly
@given(parts=st.lists(adapters(max_rank=16), min_size=2, max_size=4, unique_by=adapter_digest), data=st.data())
def test_any_order_gives_the_same_bits_and_the_sum(parts: list[Adapter], data: st.DataObject) -> None:
    one, other = compose(parts), compose(data.draw(st.permutations(parts)))
    assert one.config == other.config
    assert one.base == other.base
    for module, factors in one.modules.items():
        assert torch.equal(factors.A, other.modules[module].A)
        assert torch.equal(factors.B, other.modules[module].B)
        wanted = sum(change(part, module) for part in parts)
        assert largest(delta(one, module).double() - wanted) <= 1e-5 * sum(map(scale_of, parts))


def test_any_order_writes_the_same_files(tmp_path) -> None:
    parts = [random_adapter(seed, ranks=(seed + 1,)) for seed in range(3)]
    written = set()
    for index, order in enumerate(itertools.permutations(parts)):
        folder = save_adapter(compose(order), tmp_path / str(index))
        written.add((folder / "adapter_model.safetensors").read_bytes() + (folder / "adapter_config.json").read_bytes())
    assert len(written) == 1


def one_module(a: list[list[float]], b: list[list[float]], scaling: float = 1.0) -> Adapter:
    factors = Factors(torch.tensor(a), torch.tensor(b), scaling)
    rank = factors.rank
    return Adapter({"r": rank, "lora_alpha": rank * scaling, "target_modules": ["q_proj"]}, {Q: factors}, BASE)


def test_overlap_by_hand() -> None:
    """Compare ΔW = E₁₁ (B = e₁, A = (1, 0)) with other changes.

    3·E₁₁: cosine 1; −E₁₁: −1; E₂₁ reads the same input: cosine 0, inputs 1; E₂₂ reads another one: 0 and 0. E₁₁ + E₂₂ has
    norm √2, and its ΔWᵀΔW = 1 also has norm √2: 1/√2 and 1/√2. E₁₁ + 2·E₂₂: 1/√5, and 1/√17 for diag(1, 4).
    """
    unit = one_module([[1, 0]], [[1], [0]])
    cases = [
        (one_module([[1, 0]], [[1], [0]], 3.0), 1.0, 1.0),
        (negate(unit), -1.0, 1.0),
        (one_module([[1, 0]], [[0], [1]]), 0.0, 1.0),
        (one_module([[0, 1]], [[0], [1]]), 0.0, 0.0),
        (one_module([[1, 0], [0, 1]], [[1, 0], [0, 1]]), 1 / math.sqrt(2), 1 / math.sqrt(2)),
        (one_module([[1, 0], [0, 1]], [[1, 0], [0, 2]]), 1 / math.sqrt(5), 1 / math.sqrt(17)),
        (one_module([[1, 0]], [[0], [0]]), 0.0, 0.0),
    ]
    for other, cosine, shared in cases:
        found = overlap(unit, other)
        assert (found.cosine, found.shared_inputs) == pytest.approx((cosine, shared))
        assert found.cosines == {Q: pytest.approx(cosine)}
        assert found.inputs == {Q: pytest.approx(shared)}


@quickly
@given(first=adapters(), second=adapters())
def test_overlap_equals_that_of_dense_changes(first: Adapter, second: Adapter) -> None:
    found, turned = overlap(first, second), overlap(second, first)
    assert found.cosine == pytest.approx(turned.cosine, abs=1e-9)
    assert found.shared_inputs == pytest.approx(turned.shared_inputs, abs=1e-9)
    assert found.cosines.keys() == found.inputs.keys() == first.modules.keys() & second.modules.keys()
    for grams, whole, parts in (
        (False, found.cosine, found.cosines),
        (True, found.shared_inputs, found.inputs),
    ):
        one, other = ({m: dense(a, m, grams) for m in SHAPES} for a in (first, second))
        for module, part in parts.items():
            assert part == pytest.approx(cosine(one[module], other[module]), abs=1e-9)
        flat = [torch.cat([matrix.flatten() for matrix in matrices.values()]) for matrices in (one, other)]
        assert whole == pytest.approx(cosine(*flat), abs=1e-9)
    assert -1 - 1e-9 <= found.cosine <= 1 + 1e-9
    assert 0 <= found.shared_inputs <= 1 + 1e-9


def dense(adapter: Adapter, module: str, gram: bool) -> torch.Tensor:
    """ΔW, or ΔWᵀΔW."""
    whole = change(adapter, module)
    return whole.T @ whole if gram else whole


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))


@quickly
@given(adapter=adapters())
def test_overlap_of_an_adapter_with_itself_is_1(adapter: Adapter) -> None:
    same, turned = overlap(adapter, adapter), overlap(adapter, negate(adapter))
    assert (same.cosine, same.shared_inputs) == pytest.approx((1.0, 1.0))
    assert (turned.cosine, turned.shared_inputs) == pytest.approx((-1.0, 1.0))


def test_every_pair_is_compared() -> None:
    named = {name: random_adapter(seed) for seed, name in enumerate("abc")}
    found = overlaps(named)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["a", "c"] == overlap(named["a"], named["c"])


def test_invalid_compositions_are_refused() -> None:
    adapter = random_adapter()
    with pytest.raises(AdapterError, match="1 adapter given; composing takes two or more"):
        compose([adapter])
    with pytest.raises(AdapterError, match=r"same adapter is given twice \(digest [0-9a-f]{12}…\).*scale it first"):
        compose([adapter, random_adapter(1), random_adapter()])
    with pytest.raises(AdapterError, match="different bases"):
        compose([adapter, replace(random_adapter(1), base=BaseRecord("org/tiny", digest="2" * 64))])


def test_the_digest_depends_on_every_part() -> None:
    adapter = random_adapter()
    factors = adapter.modules[Q]
    others = [
        replace(adapter, base=BaseRecord("else")),
        replace(adapter, config={**adapter.config, "use_rslora": True}),
        replace(adapter, modules={**adapter.modules, Q: replace(factors, scaling=1.5)}),
        replace(
            adapter,
            modules={**adapter.modules, Q: replace(factors, A=factors.A.clone().index_fill_(0, torch.tensor([0]), 9))},
        ),
        negate(adapter),
    ]
    digests = {adapter_digest(one) for one in (adapter, *others)}
    assert len(digests) == len(others) + 1
    assert adapter_digest(random_adapter()) == adapter_digest(adapter)
