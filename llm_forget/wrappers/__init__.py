"""What changes the gradient of any loss: one file a wrapper, stated in a recipe as ``wrappers: [{name: sam, rho: 0.01}]``.

A wrapper is a dataclass of hyper-parameters that derives from ``Wrapper`` and overrides what it changes: the model during
forward and backward, or the gradient of a whole optimiser step. It sees gradients that are already summed over accumulation
and processes, so that the split of a step changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """What a run is like, for a wrapper to say whether it can work there.

    Attributes:
        retain: there is a retain term.
        towards: the method trains towards the forget set and turns the result round.
        quantized: the base is held in 4 or 8 bits.
        sharded: FSDP or DeepSpeed spread each gradient over the processes.
    """

    retain: bool = True
    towards: bool = False
    quantized: bool = False
    sharded: bool = False


@dataclass
class StepGradient:
    """The gradient of one optimiser step over all micro-batches and processes, in two parts.

    What reaches the optimiser in the end is ``forget + retain_weight · retain``.

    Attributes:
        forget: (P,) of γ · mean forget loss, all trained weights in a row.
        retain: (P,) of the mean retain loss, without its weight; zeros without a retain term.
        retain_loss: the mean retain loss, NaN without a retain term.
        retain_weight: α.
        forget_at: the forget gradient with the trained weights moved by a (P,) vector; costs a forward and backward.
    """

    forget: Tensor
    retain: Tensor
    retain_loss: float
    retain_weight: float
    forget_at: Callable[[Tensor], Tensor]

    @property
    def total(self) -> Tensor:
        """(P,) what the optimiser gets."""
        return self.forget + self.retain_weight * self.retain


class Wrapper:
    """The base of a wrapper; everything may be left as it is.

    Attributes:
        paper: where it comes from.
        cost: what it adds to a step, in words.
        splits_gradient: whether ``on_gradient`` is used, which needs both parts of the gradient apart.
    """

    paper: ClassVar[str]
    cost: ClassVar[str]
    splits_gradient: ClassVar[bool] = True

    def refuses(self, setting: Setting) -> str | None:
        """Why it cannot work in such a run, with what to do; None where it can."""
        if setting.towards:
            return "it changes how a loss forgets, and this method trains towards the forget set: take the wrapper out"
        if setting.sharded and self.splits_gradient:
            return (
                "it needs whole gradients, and FSDP and DeepSpeed spread them over the processes: launch with ddp.yaml"
            )
        return None

    def during(self, model: nn.Module) -> AbstractContextManager[object]:
        """In force while the policy runs forward and backward in training, and not when it is measured."""
        return nullcontext()

    def on_gradient(self, step: StepGradient) -> None:
        """Change the gradient of a step in place."""


def cosine(first: Tensor, second: Tensor) -> float:
    """The cosine of the angle between two vectors; 0 where one of them is zero."""
    size = float(first.norm() * second.norm())
    return float(torch.dot(first, second)) / size if size > 0 else 0.0
