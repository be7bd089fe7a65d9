"""Warns when forget and retain gradients cancel: then little is learned, and what is left over is mostly noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CANCELLING = 0.1  # |forget + retain| as a share of |forget| + |retain|, below which the two count as cancelling
_STEPS = 3  # optimiser steps that are looked at


def cancellation(forget: Tensor, retain: Tensor, parameters: Sequence[Tensor]) -> tuple[float, float]:
    """How the gradients of two losses stand to each other.

    Args:
        forget: a scalar loss, weighted as in the objective.
        retain: the other.
        parameters: what is looked at; the fewer and the nearer to the loss, the cheaper.

    Returns:
        The cosine between the gradients, in [−1, 1], and |g₁ + g₂| / (|g₁| + |g₂|), in [0, 1]. Opposite gradients of equal
        length give −1 and 0; at a right angle, equal lengths give 0 and 1/√2. Both 1 where a gradient is zero.
    """
    first, second = (
        torch.cat([grad.flatten().float() for grad in found if grad is not None] or [forget.new_zeros(1)])
        for found in (
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in (forget, retain)
        )
    )
    lengths = first.norm(), second.norm()
    if not (lengths[0] > 0 and lengths[1] > 0):
        return 1.0, 1.0
    cosine = (first @ second) / (lengths[0] * lengths[1])
    return float(cosine), float((first + second).norm() / (lengths[0] + lengths[1]))


def nearest_to_the_loss(model: nn.Module, count: int = 8) -> Sequence[Tensor]:
    """The last few trained weight matrices of the last block: their gradients cost a part of one block's backward pass."""
    matrices = [value for value in model.parameters() if value.requires_grad and value.dim() > 1]
    if any(hasattr(value, "placements") for value in matrices):
        return []  # sharded: a gradient taken by hand would miss the other processes' part
    return matrices[-count:]


class CancellationGuard:
    """Looks at the first micro-batch of each of the first few steps, and warns once.

    Args:
        warn: told in a sentence, with the remedy.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn, self._looked_at, self._warned = warn, 0, False

    def look(self, model: nn.Module, forget: Tensor, retain: Tensor, step: int) -> dict[str, Tensor]:
        """Measure, before the backward pass of step ``step`` (from 1).

        Returns:
            ``gradient_cosine`` to log, or nothing when this step is not looked at.
        """
        if not self._looked_at < step <= _STEPS or not (forget.requires_grad and retain.requires_grad):
            return {}
        self._looked_at = step
        parameters = nearest_to_the_loss(model)
        if not parameters:
            return {}
        cosine, share = cancellation(forget, retain, parameters)
        if share < CANCELLING and not self._warned:
            self._warned = True
            self.warn(
                f"forget and retain gradients nearly cancel at step {step}: cosine {cosine:.2f}, and what is left is "
                f"{share:.2f} of their lengths, so the model hardly learns from either. Change retain.weight or "
                "forget_weight, or take a loss that fades as it is satisfied (npo)"
            )
        return {"gradient_cosine": forget.new_tensor(cosine)}
