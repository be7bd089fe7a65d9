"""The optimizer ``natural``: by hand, against Adam on an adapter, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_forget.config import AdapterConfig, FinetuneRecipe, UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.model.blocks import add_adapter
from llm_forget.model.curvature import RIDGE, kept_metrics
from llm_forget.model.directions import aim_adapter, aiming_moments
from llm_forget.model.measure import answer_logps
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.build import make_parts
from llm_forget.train.natural import Natural, check_natural, natural_optimizer, orthogonal
from llm_forget.utils.build import build


def test_orthogonal() -> None:
    """Singular values become 1 and keep their directions; a zero stays zero, and tall and wide agree."""
    torch.testing.assert_close(orthogonal(torch.diag(torch.tensor([3.0, -2.0]))), torch.diag(torch.tensor([1.0, -1.0])))
    assert torch.equal(orthogonal(torch.zeros(4, 2)), torch.zeros(4, 2))
    torch.manual_seed(0)
    x = torch.randn(7, 3)
    torch.testing.assert_close(orthogonal(x).T @ orthogonal(x), torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal(x.T), orthogonal(x).T)


def test_a_step_by_hand() -> None:
    """C = diag(2, 1), gradient e₁: the change is −η/2 · e₁, and the loss falls by the learning rate's share."""
    weight = nn.Parameter(torch.zeros(2, 1))
    optimizer = Natural([weight], {weight: torch.diag(torch.tensor([2.0, 1.0]))}, lr=0.5, momentum=0.0)
    weight.grad = torch.tensor([[3.0], [0.0]])
    optimizer.loss = 6.0
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[-1.0], [0.0]]))  # 3 · 1 = half of 6
    for gradient, place in ((1.5, -1.5), (30.0, -2.5)):  # half as steep, half as long; never longer than the first
        weight.grad = torch.tensor([[gradient], [0.0]])
        optimizer.step()
        torch.testing.assert_close(weight.data, torch.tensor([[place], [0.0]]))


def test_the_pace_follows_what_is_measured() -> None:
    """Twice as long when they led nowhere and cost little, half as long when they cost more than they gained, else unchanged."""
    weight = nn.Parameter(torch.zeros(1, 1))
    optimizer = Natural([weight], {}, lr=0.5, momentum=0.0)
    place = 0.0
    for length, harm, progress in (
        (1, 0.05, 0.4),
        (1, 0.05, 0.45),
        (2, 0.3, 0.5),
        (2, 0.6, 0.7),
        (2, 0.8, 0.75),
        (1, 0, 0),
    ):
        weight.grad = torch.tensor([[1.0]])
        optimizer.loss = 2.0
        optimizer.step()
        place -= length
        assert float(weight.detach()) == pytest.approx(place)
        optimizer.pace(harm, progress)


def test_a_loss_that_is_not_finite() -> None:
    """The step has no length then."""
    weight = nn.Parameter(torch.zeros(2, 1))
    weight.grad = torch.ones(2, 1)
    with pytest.raises(ValueError, match="cannot set the length"):
        Natural([weight], {}).step()


def test_the_metric_is_the_divergence() -> None:
    """Small random changes of one layer's outputs cost the rows Σ ½ vᵀGv nats, as the factor says."""
    torch.manual_seed(0)
    rows = [Encoded(f"k{row}", tuple(50 + 3 * row + 5 * place for place in range(12)), 3) for row in range(24)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=64), AdapterConfig(rank=4, alpha=4))
    draws = [kept_metrics(model, rows, 0, seed=seed)[1] for seed in range(8)]
    name = next(name for name in draws[0] if "down_proj" in name)
    metric = torch.stack([draw[name] @ draw[name].T for draw in draws]).mean(0)
    metric = metric - RIDGE / (1 + RIDGE) * metric.diagonal().mean() * torch.eye(64)
    layer = model.get_submodule(name)
    batch = {"input_ids": torch.tensor([row.input_ids for row in rows])}
    before = model(**batch).logits.log_softmax(-1)
    expected, divergence = 0.0, 0.0
    for _ in range(8):
        shift = 0.002 * torch.randn(24, 12, 64)
        expected += 0.5 * float((shift @ metric * shift).sum())
        with torch.no_grad(), layer.register_forward_hook(lambda module, given, output, shift=shift: output + shift):
            after = model(**batch).logits.log_softmax(-1)
        divergence += float((before.exp() * (before - after)).sum(-1)[:, 2:-1].sum().detach())
    assert divergence == pytest.approx(expected, rel=0.05)


def test_moments_of_a_bf16_model_are_summed_in_fp32() -> None:
    """Autocast would round the products; the curvature of a real model then had no Cholesky factor."""
    torch.manual_seed(0)
    rows = [Encoded(f"k{row}", tuple(50 + 3 * row + 5 * place for place in range(12)), 3) for row in range(24)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=64).to(torch.bfloat16), AdapterConfig(rank=4, alpha=4))
    name, layer = next(one for one in model.named_modules() if one[0].endswith("down_proj"))
    inputs, gradients = [], []

    def after(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad:
            inputs.append(given[0].detach().flatten(0, 1).double())
            output.register_hook(lambda gradient: gradients.append(gradient.flatten(0, 1).double()))

    with layer.register_forward_hook(after):
        moments, factors = kept_metrics(model, rows, 0)
    x, g = torch.cat(inputs), torch.cat(gradients)
    assert len(x) == len(g) == 24 * 12
    torch.testing.assert_close(moments[name].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-7)
    metric = g.T @ g / len(g)
    metric += RIDGE * metric.diagonal().mean() * torch.eye(len(metric))
    largest = float(metric.abs().max())
    torch.testing.assert_close((factors[name] @ factors[name].T).double(), metric, rtol=1e-4, atol=1e-5 * largest)


def test_other_rows_are_spared() -> None:
    """For the same fall of the forget rows, the same steps in a plain metric move unseen rows twice as far, and Adam's too."""
    moved = {name: _moved(name) for name in ("natural", "plain metric", "adam")}
    assert moved["natural"] < 0.5 * moved["plain metric"]
    assert moved["natural"] < 0.5 * moved["adam"]


def _moved(name: str) -> float:
    torch.manual_seed(0)
    forget = [Encoded(f"f{row}", tuple(40 + row + 3 * place for place in range(9)), 3) for row in range(3)]
    keep = [Encoded(f"k{row}", tuple(150 + row + 2 * place for place in range(9)), 3) for row in range(12)]
    unseen = [Encoded(f"u{row}", tuple(151 + 2 * row + 2 * place for place in range(9)), 3) for row in range(6)]
    model = add_adapter(tiny_model(tiny_tokenizer(), hidden=64), AdapterConfig(rank=2, alpha=2))
    before = [answer_logps(model, rows, 0)[0] for rows in (forget, unseen)]
    inputs, metrics = kept_metrics(model, keep, 0)
    metric = metrics if name == "natural" else {}
    aim_adapter(model, aiming_moments(model, forget, 0), inputs, unit="forget" if name == "adam" else "keep")
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3) if name == "adam" else natural_optimizer(model, metric, 0.03)
    ids = torch.tensor([row.input_ids for row in forget])
    for _ in range(60):
        logps = model(input_ids=ids).logits.log_softmax(-1)[:, 2:-1].gather(-1, ids[:, 3:, None]).squeeze(-1).sum(-1)
        if float((before[0] - logps.detach()).mean()) > 2:
            break
        loss = (logps - before[0] + 12).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, Natural):
            optimizer.loss = float(loss.detach())
        optimizer.step()
    else:
        pytest.fail(f"{name}: the forget rows moved by {float((before[0] - logps.detach()).mean()):.2f}")
    return float((answer_logps(model, unseen, 0)[0] - before[1]).abs().mean())


def test_state_round_trip() -> None:
    """A copy with the state of the first takes the same next step."""
    copies = []
    for _ in range(2):
        weight = nn.Parameter(torch.zeros(3, 2))
        copies.append((weight, Natural([weight], {weight: torch.eye(3)})))
    (one, first), (two, second) = copies
    torch.manual_seed(0)
    for _ in range(2):
        one.grad, first.loss = torch.randn(3, 2), 1.0
        first.step()
    with torch.no_grad():
        two.copy_(one)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    one.grad = torch.randn(3, 2)
    two.grad, second.loss = one.grad.clone(), 1.0
    first.step()
    second.step()
    assert math.isfinite(float(one.sum()))
    assert torch.equal(one, two)


def test_recipes_that_cannot_use_it(tmp_path: Path) -> None:
    """Without an aimed adapter, and for fine-tuning."""
    data = {"forget": {"path": "f"}, "retain": {"path": "r"}}
    values = {"model": {"name": "m"}, "data": data, "method": {"name": "npo"}, "output_dir": str(tmp_path / "out")}
    for adapter in ({}, {"adapter": None}):
        recipe = build(UnlearnRecipe, {**values, **adapter, "train": {"optimizer": "natural"}}, "test")
        with pytest.raises(RecipeError, match=r"natural is for unlearning with adapter\.inputs: forget"):
            make_parts(recipe)
    check_natural(
        build(UnlearnRecipe, {**values, "train": {"optimizer": "natural"}, "adapter": {"inputs": "forget"}}, "t")
    )
    tune = {"model": {"name": "m"}, "data": [{"path": "f"}], "train": {"optimizer": "natural"}, "output_dir": "o"}
    with pytest.raises(RecipeError, match="natural is for unlearning"):
        check_natural(build(FinetuneRecipe, tune, "test"))
