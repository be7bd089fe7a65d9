"""The optimizer ``natural``: descent in which the length of a step is what it costs the rows to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.train.launch import is_sharded

NAME = "natural"
RATE = 0.1  # the default learning rate: the share of the loss that the first step removes, if it were linear
MOMENTUM = 0.8
_SMALL = 1e-12
_LIGHT, _HEAVY = 0.25, 1.0  # harm per progress below which steps may double, and above which they halve
_STALLED = 0.1  # of the way, from one measurement to the next
_LONGEST = 16.0


class Natural(Optimizer):
    """Momentum and orthogonal steps in the metric of the rows to keep.

    A weight B (d, r) of an adapter with fixed A is changed by ``−η C⁻ᵀ orth(C⁻¹ m)``. C Cᵀ is the curvature of the KL divergence
    on the rows to keep in the layer's outputs, m the momentum, and ``orth(X) = X (XᵀX)^(−½)``. Among all changes that cost these
    rows equally much in their worst direction, this one reduces the loss most. A must be scaled so that the rows to keep have
    unit energy in each of its rows (``model.directions``); then the input side of the curvature is the identity.

    The learning rate is relative: the first step is so long that the loss would fall by that share if it were linear. Later steps
    are shorter in proportion to the momentum, and longer or shorter by what measurements show (``pace``). So the rate needs no
    tuning to a model.

    Args:
        parameters: the trained weights.
        factors: weight → its C, (d, d) lower triangular or a scalar.
        lr: the share of the loss, above 0.
        momentum: share of the earlier gradients, 0 or more and below 1.

    Source: natural gradient, Amari 1998; Kronecker factors, arXiv:1503.05671; orthogonal steps, Bernstein and Newhouse 2024,
    arXiv:2409.20325.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        factors: Mapping[nn.Parameter, Tensor],
        *,
        lr: float = RATE,
        momentum: float = MOMENTUM,
    ) -> None:
        super().__init__(
            list(parameters),
            {
                "lr": lr,
                "momentum": momentum,
                "length": 0.0,
                "strength": 0.0,
                "taken": 0,
                "stretch": 1.0,
                "progress": 0.0,
            },
        )
        self._factors = dict(factors)
        self.loss = math.nan  # of the coming step, over all processes

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step. ``loss`` must hold the loss before the first one.

        Raises:
            ValueError: it is not finite.
        """
        loss = None if closure is None else closure()
        for group in self.param_groups:
            group["taken"] += 1
            changes, slope, strength = [], 0.0, 0.0
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self._momentum(weight, group)
                change = self._direction(weight, momentum)
                slope -= float((weight.grad.float() * change).sum())
                strength -= float((momentum * change).sum())
                changes.append((weight, change))
            if not group["strength"] and slope > 0:
                if not math.isfinite(self.loss):
                    raise ValueError(
                        f"the loss before the first step is {self.loss}; the optimizer cannot set the length of its steps"
                    )
                group["length"], group["strength"] = abs(self.loss) / slope, strength
            if not group["strength"]:
                continue
            # the length of a steepest descent falls with the gradient: without that, the last rows would move all others
            length = group["stretch"] * group["lr"] * group["length"] * min(1.0, strength / group["strength"])
            for weight, change in changes:
                weight.add_((length * change).to(weight.dtype))
        return loss

    def pace(self, harm: float, progress: float) -> None:
        """Double the length of the coming steps if the last ones led nowhere and cost little; halve it if they cost too much.

        Args:
            harm: the share of the allowed loss that is used up, measured on rows to keep.
            progress: the share of the way that is behind.
        """
        for group in self.param_groups:
            stalled = progress - group["progress"] < _STALLED
            group["progress"] = progress
            if harm > _HEAVY * max(progress, 0.0) and harm > _STALLED:
                group["stretch"] = max(group["stretch"] / 2, 1 / _LONGEST)
            elif stalled and harm < _LIGHT * max(progress, _STALLED):
                group["stretch"] = min(2 * group["stretch"], _LONGEST)

    def _momentum(self, weight: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
        """The mean of the gradients so far, the last ones most."""
        gradient, share = weight.grad, group["momentum"]
        if gradient is None:
            raise RuntimeError("a weight without a gradient has no momentum")
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient, dtype=torch.float32)
        state["momentum"].mul_(share).add_(gradient.float(), alpha=1 - share)
        found: Tensor = state["momentum"] / (1 - share ** group["taken"])
        return found

    def _direction(self, weight: nn.Parameter, momentum: Tensor) -> Tensor:
        factor = self._factors.get(weight)
        if factor is None or weight.ndim != 2:
            return -orthogonal(momentum) if weight.ndim == 2 else -momentum / momentum.norm().clamp(min=_SMALL)
        if factor.ndim == 0:
            return -orthogonal(momentum) / factor
        white = torch.linalg.solve_triangular(factor, momentum, upper=False)
        step: Tensor = torch.linalg.solve_triangular(factor.T, orthogonal(white), upper=True)
        return -step


def orthogonal(matrix: Tensor) -> Tensor:
    """``X (XᵀX)^(−½)``, (d, r) like X with d ≥ r or d < r: its singular values become 1, and those that are 0 stay 0.

    ``diag(3, −2)`` gives ``diag(1, −1)``.
    """
    if matrix.shape[0] < matrix.shape[1]:
        flipped: Tensor = orthogonal(matrix.T).T
        return flipped
    wide = matrix.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide)
    largest = values[-1]
    keep = values > 1e-10 * largest
    inverse = torch.where(keep & (largest > 0), values.clamp(min=1e-300).rsqrt(), 0.0)
    found: Tensor = (wide @ (vectors * inverse) @ vectors.T).to(matrix.dtype)
    return found


class TellLoss(TrainerCallback):
    """Gives the optimizer the loss of the coming step, the mean over micro-batches and processes."""

    def __init__(self, optimizer: Natural) -> None:
        self._optimizer = optimizer
        self.trainer: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the step."""
        losses = self.trainer.micro_losses()
        self._optimizer.loss = float(self.trainer.accelerator.reduce(losses.mean(), reduction="mean"))


def check_natural(recipe: UnlearnRecipe | FinetuneRecipe) -> None:
    """Check that the optimizer ``natural`` can be used, if a recipe names it.

    Raises:
        RecipeError: it cannot.
    """
    if recipe.train.optimizer != NAME:
        return
    adapter = recipe.adapter
    if isinstance(recipe, FinetuneRecipe) or adapter is None or adapter.inputs != "forget":
        raise RecipeError(
            "train.optimizer: natural is for unlearning with adapter.inputs: forget, whose A tells the forget rows from the rows "
            "to keep; set that, or another optimizer such as adamw_torch_fused"
        )
    if is_sharded():
        raise RecipeError(
            "train.optimizer: natural needs whole weights, and FSDP and DeepSpeed shard them; launch with ddp.yaml, or set "
            "another optimizer"
        )


def natural_optimizer(model: Any, metrics: Mapping[str, Tensor], rate: float) -> Natural:
    """The optimizer for a model's adapter.

    Args:
        model: the PEFT model.
        metrics: layer → its C (``model.curvature``).
        rate: the learning rate.
    """
    factors = {
        module.lora_B["default"].weight: metrics[name]
        for name, module in model.named_modules()
        if hasattr(module, "lora_B") and name in metrics
    }
    return Natural([value for value in model.parameters() if value.requires_grad], factors, lr=rate)
