"""Test LoRA layers in one operation against PEFT's: same outputs, gradients and dtypes, and PEFT's forward for all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_rows import PACKED_ROWS, scores_and_gradient
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from llm_forget.config import AdapterConfig
from llm_forget.data.collate import collate
from llm_forget.model import fused_lora as module
from llm_forget.model.blocks import add_adapter, cast_adapter_inputs
from llm_forget.model.checkpointing import checkpointing_arguments
from llm_forget.model.directions import aiming_moments
from llm_forget.model.fused_lora import _FusedLora, difference, fused_lora
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like
from llm_forget.testing import tiny_model, tiny_tokenizer

LAYERS = 2 * 7


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that the operation gets."""
    seen: list[tuple[int, ...]] = []
    apply = _FusedLora.apply

    def counted(x: Tensor, *parts: Any) -> Tensor:
        seen.append(tuple(x.shape))
        out: Tensor = apply(x, *parts)  # type: ignore[no-untyped-call]
        return out

    monkeypatch.setattr(module._FusedLora, "apply", counted)
    return seen


def adapted(dtype: torch.dtype = torch.float32, *, only_b: bool = False, **more: Any) -> Any:
    model = add_adapter(tiny_model(tiny_tokenizer(), seed=3).to(dtype), AdapterConfig(rank=2, alpha=6, **more))
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
        elif only_b and "lora_A" in name:
            value.requires_grad_(False)
    return model


def layer_of(model: nn.Module) -> Any:
    return next(one for one in model.modules() if hasattr(one, "lora_A"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", ["x a b", "a b", "x b", "b", "x"])
def test_gradients_by_hand(trained: str, bias: bool) -> None:
    """For s = 3 and an upstream gradient g: dx = g W + s g B A, dA = s (g B)ᵀ x, dB = s gᵀ (x Aᵀ)."""
    made = torch.Generator().manual_seed(0)
    sizes = {"x": (2, 5, 7), "w": (4, 7), "a": (2, 7), "b": (4, 2), "bias": (4,), "g": (2, 5, 4)}
    x, w, a, b, c, g = (torch.randn(*size, generator=made, dtype=torch.float64) for size in sizes.values())
    given = {name: value.requires_grad_(name in trained.split()) for name, value in {"x": x, "a": a, "b": b}.items()}
    # the dtypes that are supported do not include fp64, the operation itself does
    out: Tensor = _FusedLora.apply(x, w, c if bias else None, a, b, 3.0)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(out, x @ w.T + (c if bias else 0) + 3 * x @ a.T @ b.T)
    out.backward(g)
    rows, slopes = x.detach().flatten(0, 1), g.flatten(0, 1)
    by_hand = {
        "x": (g @ w + 3 * g @ b @ a).detach(),
        "a": 3 * (slopes @ b).T.detach() @ rows,
        "b": 3 * slopes.T @ (rows @ a.T).detach(),
    }
    for name, value in given.items():
        assert (value.grad is not None) == (name in trained.split())
        if value.grad is not None:
            torch.testing.assert_close(value.grad, by_hand[name])


@pytest.mark.parametrize("transposed", [False, True])
def test_the_output_may_be_changed_in_place(transposed: bool) -> None:
    """Llama 4 adds its experts into the output of another layer."""
    x, w, a, b = (torch.randn(*size) for size in ((2, 5, 7), (4, 7), (2, 7), (4, 2)))
    b.requires_grad_()
    given = x.transpose(0, 1) if transposed else x
    out: Tensor = _FusedLora.apply(given, w, None, a, b, 3.0)  # type: ignore[no-untyped-call]
    out.mul_(2.0).add_(1.0)
    out.sum().backward()
    torch.testing.assert_close(out, 2 * (given @ w.T + 3 * given @ a.T @ b.T) + 1)
    torch.testing.assert_close(b.grad, 6 * torch.ones(4, 10) @ (given.flatten(0, 1) @ a.T))


@pytest.mark.parametrize(("trained", "kept"), [("a b", {(10, 7), (10, 2)}), ("b", {(10, 2)}), ("a", {(10, 7)})])
def test_what_is_kept_for_backward(trained: str, kept: set[tuple[int, ...]]) -> None:
    """The inputs (10, 7) only for A, and their product with A (10, 2) only for B."""
    x, w, a, b = (torch.randn(*size) for size in ((2, 5, 7), (4, 7), (2, 7), (4, 2)))
    for name, value in (("a", a), ("b", b)):
        value.requires_grad_(name in trained.split())
    saved: set[tuple[int, ...]] = set()

    def see(value: Tensor) -> Tensor:
        saved.add(tuple(value.shape))
        return value

    with saved_tensors_hooks(see, lambda value: value):
        _FusedLora.apply(x, w, None, a, b, 3.0)  # type: ignore[no-untyped-call]
    assert {shape for shape in saved if shape[0] == 10} == kept


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["all", "only B", "upper", "checkpointed", "selective"])
def test_scores_and_gradients_are_those_of_peft(kind: str, is_packed: bool, calls: list[tuple[int, ...]]) -> None:
    model = adapted(only_b=kind == "only B", top_share=0.5 if kind == "upper" else 1.0).train()
    if kind in ("checkpointed", "selective"):
        chosen: Any = True if kind == "checkpointed" else kind
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_arguments(chosen))
    scores, expected = scores_and_gradient(model, is_packed=is_packed)
    assert not calls
    assert expected.abs().max() > 1e-2
    with fused_lora(model) as count:
        assert count == (LAYERS // 2 if kind == "upper" else LAYERS)
        calls.clear()
        again, found = scores_and_gradient(model, is_packed=is_packed)
        assert len(calls) >= count
        assert ((1, 24, 64) in calls or (1, 24, 32) in calls) == is_packed, "states of one line stay (1, N, H)"
    torch.testing.assert_close(again, scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    calls.clear()
    scores_and_gradient(model, is_packed=is_packed)
    assert not calls, "after the run PEFT computes them again"


@pytest.mark.parametrize("kind", [None, True, "selective"])
def test_a_base_in_bf16_has_the_dtypes_of_peft(kind: Any, calls: list[tuple[int, ...]]) -> None:
    model = adapted(torch.bfloat16).train()
    if kind is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_arguments(kind))
        model.enable_input_require_grads()
    with autocast_like(model):
        scores, expected = scores_and_gradient(model, is_packed=False)
        with fused_lora(model) as count:
            assert count == LAYERS
            calls.clear()
            again, found = scores_and_gradient(model, is_packed=False)
            assert calls
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(again, scores, rtol=0.02, atol=0.03)
    assert float((found - expected).norm() / expected.norm()) < 0.03
    layer = layer_of(model)
    for x in (torch.randn(2, 3, 64), torch.randn(2, 3, 64, dtype=torch.bfloat16)):
        given = x[..., : layer.in_features].clone().requires_grad_()
        with autocast_like(model), fused_lora(model):
            calls.clear()
            out = layer(given)
            assert calls
        assert out.dtype == torch.bfloat16
        out.sum().backward()
        assert given.grad is not None
        assert given.grad.dtype == given.dtype


@pytest.mark.parametrize("bias", [False, True])
def test_selective_checkpointing_keeps_the_first_product(bias: bool, calls: list[tuple[int, ...]]) -> None:
    """Of a layer that is wide enough: the product with W is kept, so the adapter must not be added in place."""
    base = nn.Linear(200, 6, bias=bias).requires_grad_(False)
    layer: Any = Linear(base, "default", config=LoraConfig(r=2), r=2, lora_alpha=2)
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 3, 200, requires_grad=True)

    def gradients(**arguments: Any) -> list[Tensor]:
        def block(value: Tensor) -> Tensor:
            return layer(value).tanh()

        out = checkpoint(block, x, **arguments) if arguments else block(x)
        return list(torch.autograd.grad(out.square().sum(), [x, *(p for p in layer.parameters() if p.requires_grad)]))

    expected = gradients()
    with fused_lora(layer) as count:
        assert count == 1
        calls.clear()
        found = gradients(**(checkpointing_arguments("selective") or {}))
        assert len(calls) == 2
    torch.testing.assert_close(found, expected)


def test_a_layer_used_twice(calls: list[tuple[int, ...]]) -> None:
    model = adapted()
    layer = layer_of(model)
    x = torch.randn(3, layer.in_features)
    found = []
    for wanted in (False, True):
        model.zero_grad()
        with fused_lora(model, wanted=wanted):
            calls.clear()
            (layer(x).sum() + layer(2 * x).square().sum()).backward()
            assert len(calls) == (2 if wanted else 0)
        found.append([layer.lora_A["default"].weight.grad.clone(), layer.lora_B["default"].weight.grad.clone()])
    torch.testing.assert_close(found[0], found[1])


def watch(part: str) -> Callable[[Any], Any]:
    return lambda layer: getattr(layer, part)["default"].register_forward_hook(lambda *_: None)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a hook on A": watch("lora_A"),
    "a hook on B": watch("lora_B"),
    "a hook on the base": lambda layer: layer.base_layer.register_forward_pre_hook(lambda *_: None),
    "another forward of the base": lambda layer: setattr(layer.base_layer, "forward", layer.base_layer.forward),
    "a disabled adapter": lambda layer: layer.enable_adapters(False),
    "a merged adapter": lambda layer: layer.merge(),
    "dropout": lambda layer: layer.lora_dropout.update({"default": nn.Dropout(0.5)}),
    "a trained base": lambda layer: layer.base_layer.requires_grad_(True),
    "another dtype": lambda layer: layer.base_layer.to(torch.float16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_peft_computes_what_is_not_plain(change: str, calls: list[tuple[int, ...]]) -> None:
    """The layer is changed inside the context, as wrappers and measurements do."""
    model = adapted()
    layer = layer_of(model)
    x = torch.randn(3, layer.in_features)
    with fused_lora(model) as count:
        assert count == LAYERS
        calls.clear()
        layer(x)
        assert calls
        calls.clear()
        CHANGES[change](layer)
        torch.manual_seed(0)
        out = layer(
            x.half()
            if change == "another dtype" and not hasattr(layer, "cast_input_dtype_enabled")
            else x.to(layer.base_layer.weight.dtype)
        )
        assert not calls
        torch.manual_seed(0)
        expected = type(layer).forward(layer, x.to(layer.base_layer.weight.dtype))
        assert torch.equal(out, expected)


def test_hooks_of_the_layer_and_moments_of_its_inputs_are_as_before() -> None:
    model = adapted()
    before = aiming_moments(model, PACKED_ROWS, 0)
    seen: list[Tensor] = []
    handle = layer_of(model).register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    with fused_lora(model), torch.no_grad():
        after = aiming_moments(model, PACKED_ROWS, 0)
        count = len(seen)
        score_answers(model, collate(PACKED_ROWS, 0))
    handle.remove()
    assert count > 0
    assert len(seen) == count + 1
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_who_may_use_it() -> None:
    said: list[str] = []
    with fused_lora(tiny_model(tiny_tokenizer()), say=said.append) as count:
        assert count == 0, "no adapter"
    with fused_lora(adapted(), wanted=False, say=said.append) as count:
        assert count == 0
    with fused_lora(adapted(dropout=0.5), say=said.append) as count:
        assert count == 0, "dropout in training mode"
    halves = adapted(torch.float16)
    cast_adapter_inputs(halves, True)
    with fused_lora(halves, say=said.append) as count:
        assert count == 0, "PEFT's products are in fp32 there"
    assert not said


def test_a_restored_model_is_the_old_one() -> None:
    model = adapted()
    with fused_lora(model) as count, fused_lora(model) as again:
        assert (count, again) == (LAYERS, 0), "a forward that somebody replaced is left alone"
        assert "forward" in vars(layer_of(model))
    assert "forward" not in vars(layer_of(model))
    with pytest.raises(KeyError, match="on purpose"), fused_lora(model):
        raise KeyError("on purpose")
    assert "forward" not in vars(layer_of(model))


def unscaled(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return nn.functional.linear(x, weight, bias) + x @ a.T @ b.T


def without_gradient(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return nn.functional.linear(x, weight, bias) + scaling * (x @ a.detach().T + 0 * (x @ a.T).sum()) @ b.T


def broken(*_: Any) -> Tensor:
    raise RuntimeError("no such product")


@pytest.mark.parametrize(
    ("operation", "reason"), [(unscaled, "differs by"), (without_gradient, "differs by"), (broken, "RuntimeError")]
)
def test_other_numbers_or_an_error_are_found_and_said(
    operation: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module._FusedLora, "apply", operation)
    with fused_lora(adapted(), say=said.append) as count:
        assert count == 0
    assert len(said) == 1
    assert reason in said[0]
    assert "PEFT computes the adapters" in said[0]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_trial_leaves_the_layer_alone(dtype: torch.dtype, close: float) -> None:
    model = adapted(dtype)
    layer = layer_of(model)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with autocast_like(model):
        assert difference(layer) <= close
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(value.grad is None for value in layer.parameters())
