"""A LoRA on top of the model, added by hooks. The model's own weights and adapters are not touched, quantised ones neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.auditing.tools.hidden import decoder_blocks
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.adapted import added, low_rank
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """The linear layers of the blocks, in order. Of a layer with an adapter, the layer with its adapter counts as one."""
    found: dict[int, nn.Module] = {}
    for block in decoder_blocks(model):
        inside: set[int] = set()
        for module in block.modules():
            if id(module) in inside or not _is_linear(module):
                continue
            inside.update(map(id, module.modules()))
            found[id(module)] = module
    return list(found.values())


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    known = isinstance(module, nn.Linear) or hasattr(module, "base_layer") or type(module).__name__ == "Conv1D"
    return known and isinstance(weight, Tensor)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    base: Any = getattr(layer, "base_layer", layer)
    if hasattr(base, "in_features"):
        return int(base.in_features), int(base.out_features)
    return tuple(base.weight.shape)  # Conv1D: (in, out)


def weight_norm(layer: Any) -> float:
    """The Frobenius norm of a layer's weight; of a quantised one, estimated from its response to random inputs."""
    weight: Tensor = layer.weight
    if weight.is_floating_point():
        return float(weight.float().norm())
    width, _ = _sizes(layer)
    inputs = torch.randn(64, width, generator=torch.Generator().manual_seed(0)).to(weight.device)
    with torch.no_grad():
        response = layer(inputs) - layer(torch.zeros_like(inputs))
    return float(response.float().square().sum(-1).mean().sqrt())


class SideAdapter:
    """LoRA factors for all linear layers of a model's blocks.

    Args:
        model: the model; its device is used.
        rank: rank of every layer.
        alpha: the output of each layer gets ``alpha / rank · B·A·x``.
        seed: seed of the A matrices. All B are zero, so a new adapter changes nothing.
    """

    def __init__(self, model: nn.Module, *, rank: int = 16, alpha: float = 32.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        device = next(model.parameters()).device
        self.scale = alpha / rank
        self.layers = linear_layers(model)
        self.A: list[Tensor] = []
        self.B: list[Tensor] = []
        for layer in self.layers:
            width, out = _sizes(layer)
            a = torch.empty(rank, width)
            a.uniform_(-(width**-0.5), width**-0.5, generator=generator)
            self.A.append(a.to(device))
            self.B.append(torch.zeros(out, rank, device=device))

    @property
    def weights(self) -> list[Tensor]:
        """All factors."""
        return [*self.A, *self.B]

    def fill(self, size: float, *, seed: int) -> None:
        """Give B random values, so that the change of each layer has ``size`` times the norm of its weight."""
        generator = torch.Generator().manual_seed(seed + 1)
        for place, layer in enumerate(self.layers):
            base: Any = getattr(layer, "base_layer", layer)
            b = torch.randn(self.B[place].shape, generator=generator).to(self.B[place].device)
            change = self.scale * torch.linalg.matrix_norm(b @ self.A[place])
            self.B[place] = b * (size * weight_norm(base) / change)

    @contextmanager
    def active(self, strength: float = 1.0) -> Iterator[None]:
        """In this context the model computes with the adapter."""

        def change(place: int, x: Tensor) -> Tensor:
            return strength * self.scale * low_rank(self.A[place], self.B[place], x)

        with added((layer, partial(change, place)) for place, layer in enumerate(self.layers)):
            yield


def teach(
    model: nn.Module,
    adapter: SideAdapter,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    steps: int,
    learning_rate: float,
    batch_size: int = 8,
    seed: int = 0,
    after: Callable[[int], None] | None = None,
) -> None:
    """Train a side adapter on rows with Adam; the model's own weights stay as they are.

    Args:
        model: the model.
        adapter: the adapter.
        rows: at least one, each with an answer token.
        pad_token_id: any id of the vocabulary.
        steps: optimiser steps.
        learning_rate: of Adam, constant.
        batch_size: rows per step.
        seed: seed of the order of the rows.
        after: called after each step with its number, from 1.
    """
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    before = [(value, value.requires_grad) for value in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    model.eval()  # no dropout, so that the same seed gives the same weights
    model.requires_grad_(False)
    for factor in adapter.weights:
        factor.requires_grad_(True)
    optimiser = torch.optim.Adam(adapter.weights, lr=learning_rate)
    try:
        for step in range(1, steps + 1):
            if len(queue) < min(batch_size, len(rows)):
                queue += torch.randperm(len(rows), generator=order).tolist()
            batch, queue = queue[:batch_size], queue[batch_size:]
            inputs = collate([rows[index] for index in batch], pad_token_id)
            with torch.enable_grad(), adapter.active(), autocast_like(model):
                loss = -score_answers(model, {k: v.to(device) for k, v in inputs.items()}).mean_logps.mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if after is not None:
                after(step)
    finally:
        for factor in adapter.weights:
            factor.requires_grad_(False)
        for value, required in before:
            value.requires_grad_(required)
        for module, mode in training:
            module.training = mode
