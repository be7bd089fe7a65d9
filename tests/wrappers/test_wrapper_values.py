"""Test wrappers against values computed by hand, without a model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_forget.errors import RecipeError
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class, names_in
from llm_forget.wrappers import Setting, StepGradient, Wrapper, cosine
from llm_forget.wrappers.dual import Dual, dual_step
from llm_forget.wrappers.gru import GRU, rectify
from llm_forget.wrappers.null_space import NullSpace
from llm_forget.wrappers.sam import SAM, ascent_step
from llm_forget.wrappers.straight_through import StraightThrough, rounded

NAMES = names_in("llm_forget.wrappers")
vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)


def wrapper_class(name: str) -> type[Wrapper]:
    return find_class("llm_forget.wrappers", name, "on_gradient")


def step(forget: list[float], retain: list[float], loss: float = 0.5, weight: float = 1.0) -> StepGradient:
    """The loss ½‖θ‖², whose gradient at θ + ε is θ + ε."""
    at = torch.tensor(forget)
    return StepGradient(at, torch.tensor(retain), loss, weight, lambda change: at + change)


@pytest.mark.parametrize("name", NAMES)
def test_every_wrapper_has_a_description_and_refuses_invalid_use(name: str) -> None:
    wrapper = wrapper_class(name)()
    assert "arXiv:" in wrapper.paper
    assert wrapper.cost
    assert wrapper.refuses(Setting()) is None
    if not isinstance(wrapper, NullSpace):  # which restricts where an adapter acts, in whatever direction it is trained
        assert "train" in str(wrapper.refuses(Setting(towards=True)))
    assert "ddp.yaml" in str(wrapper.refuses(Setting(sharded=True)))


def test_missing_retain_rows_and_quantised_weights_are_refused() -> None:
    for name in ("gru", "dual"):
        assert "set retain.name" in str(wrapper_class(name)().refuses(Setting(retain=False)))
    assert SAM().refuses(Setting(retain=False)) is None
    assert "quantization: null" in str(StraightThrough().refuses(Setting(quantized=True)))
    assert "remove `adapter: null`" in str(NullSpace().refuses(Setting(adapter=False)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sam", {"rho": -1}),
        ("sam", {"rho": math.nan}),
        ("gru", {"smoothing": 0}),
        ("gru", {"smoothing": 1.5}),
        ("dual", {"step_size": 0}),
        ("dual", {"bound": -1}),
        ("dual", {"tolerance": -1}),
        ("null_space", {"energy": 1.0}),
        ("straight_through", {"bits": 1}),
        ("straight_through", {"group": 0}),
        ("sam", {"roh": 0.1}),
    ],
)
def test_bad_values_are_refused_by_name(name: str, values: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        build(wrapper_class(name), values, f"wrapper {name}")


def test_sam_computed_by_hand() -> None:
    """G = (3, 4), ρ = 1: ε = (0.6, 0.8); the gradient of ½‖θ‖² at θ + ε with θ = g is (3.6, 4.8); the retain part is kept."""
    assert ascent_step(torch.tensor([3.0, 4.0]), rho=1.0).tolist() == pytest.approx([0.6, 0.8])
    assert ascent_step(torch.zeros(2), rho=1.0).tolist() == [0.0, 0.0]
    now = step([3.0, 4.0], [1.0, 0.0])
    SAM(rho=1.0).on_gradient(now)
    assert now.forget.tolist() == pytest.approx([3.6, 4.8])
    assert now.retain.tolist() == [1.0, 0.0]
    still = step([3.0, 4.0], [1.0, 0.0])
    SAM(rho=0.0).on_gradient(still)
    assert still.forget.tolist() == [3.0, 4.0], "without a radius nothing changes"


def test_rectify_computed_by_hand() -> None:
    """(1, −1) against (0, 2): ⟨·⟩ = −2, ‖r‖² = 4, so (1, −1) + ½ (0, 2) = (1, 0). With (0, −2) there is no conflict."""
    forget = torch.tensor([1.0, -1.0])
    assert rectify(forget, torch.tensor([0.0, 2.0])).tolist() == [1.0, 0.0]
    assert rectify(forget, torch.tensor([0.0, -2.0])).tolist() == [1.0, -1.0]
    assert rectify(forget, torch.zeros(2)).tolist() == [1.0, -1.0]


@given(vectors, vectors)
@settings(deadline=None)
def test_the_rectified_gradient_never_raises_the_retain_loss(first: list[float], second: list[float]) -> None:
    forget, retain = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    found: Tensor = rectify(forget, retain)
    assert float(torch.dot(found, retain)) >= -1e-9 * max(1.0, float(forget.norm() * retain.norm()))
    assert float(found.norm()) <= float(forget.norm()) + 1e-9, "a projection is no longer than what it projects"


def test_gru_smooths_the_retain_gradient_and_keeps_the_retain_part() -> None:
    """0.8 r₁, then 0.8 r₂ + 0.2 · 0.8 r₁: (0, 2) and (2, 0) give (0, 1.6) and (1.6, 0.32)."""
    gru = GRU(smoothing=0.8)
    first, second = step([1.0, -1.0], [0.0, 2.0]), step([0.0, -1.0], [2.0, 0.0])
    gru.on_gradient(first)
    assert first.forget.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert first.total.tolist() == pytest.approx([1.0, 2.0])
    gru.on_gradient(second)
    average = torch.tensor([1.6, 0.32])
    torch.testing.assert_close(second.forget, rectify(torch.tensor([0.0, -1.0]), average))
    assert cosine(second.forget, average) == pytest.approx(0, abs=1e-6)


def test_dual_computed_by_hand() -> None:
    """λ = 1, L = 0.5, ε = 0.2, η = 2: 1 + 2 · 0.3 = 1.6. The weight is clipped at zero."""
    assert dual_step(1.0, 0.5, bound=0.2, step_size=2.0) == pytest.approx(1.6)
    assert dual_step(0.1, 0.0, bound=1.0, step_size=2.0) == 0.0
    assert dual_step(3.0, 0.2, bound=0.2, step_size=2.0) == 3.0, "at the bound the weight rests"


def test_dual_sets_its_bound_in_the_first_step_and_acts_from_the_next() -> None:
    """ε = 1.5 · 0.4 = 0.6; then L = 1.0 adds 2 · 0.4 = 0.8 to 1 − 2 · 0.2 = 0.6."""
    dual, weights = Dual(tolerance=0.5, step_size=2.0), []
    for loss in (0.4, 1.0, 0.6):
        now = step([1.0, 0.0], [0.0, 1.0], loss=loss)
        dual.on_gradient(now)
        weights.append(now.retain_weight)
    assert weights == pytest.approx([1.0, 0.6, 1.4])
    assert now.total.tolist() == pytest.approx([1.0, 1.4])


def test_rounding_computed_by_hand() -> None:
    """4 bits: scale 0.7/7 = 0.1, so 0.12 → 0.1, −0.26 → −0.3; the second group's scale is 1, the short third's 0.02."""
    weight = torch.tensor([[0.7, 0.12, 7.0, 1.4, 0.14], [-0.26, 0.7, 0.0, 0.0, 0.0]])
    held = rounded(weight, bits=4, group=2)
    expected = torch.tensor([[0.7, 0.1, 7.0, 1.0, 0.14], [-0.3, 0.7, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(held, expected)


@given(st.integers(0, 2**16), st.integers(2, 8), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_rounding_is_close_idempotent_and_passes_the_gradient(seed: int, bits: int, group: int) -> None:
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    held = rounded(weight, bits=bits, group=group)
    assert (held - weight).abs().max() <= weight.abs().max() / (2 ** (bits - 1) - 1) / 2 + 1e-6
    torch.testing.assert_close(rounded(held.detach(), bits=bits, group=group), held.detach())
    (held * 3).sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 7), 3.0))


@pytest.mark.parametrize("name", ["gru", "dual"])
def test_a_stateful_wrapper_resumes(name: str) -> None:
    whole, first, second = (wrapper_class(name)() for _ in range(3))
    steps = [([1.0, -1.0], [0.0, 2.0], 0.4), ([0.0, -1.0], [2.0, 0.0], 1.0)]
    for forget, retain, loss in steps:
        expected = step(forget, retain, loss)
        whole.on_gradient(expected)
    first.on_gradient(step(*steps[0]))
    second.load_state_dict(first.state_dict())
    found = step(*steps[1])
    second.on_gradient(found)
    assert torch.equal(found.total, expected.total)
