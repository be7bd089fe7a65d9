"""One file per wrapper, which changes the gradient of any loss: ``wrappers: [{name: sam, rho: 0.01}]`` in a recipe.

A wrapper is a dataclass of hyper-parameters that derives from ``Wrapper``. It overrides ``during`` to change the model in forward
and backward, ``on_gradient`` to change the gradient of an optimiser step, or ``after_step`` to change the weights after it. That
gradient is already summed over accumulation steps and processes, so the result does not depend on how a step is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from llm_forget.data.encode import Encoded


@dataclass(frozen=True)
class Setting:
    """The properties of a run that decide whether a wrapper can be used.

    Attributes:
        retain: there is a retain term.
        towards: the method trains towards the forget set and negates the result.
        quantized: the base weights have 4 or 8 bits.
        sharded: FSDP or DeepSpeed distribute each gradient over the processes.
        adapter: an adapter is trained, not the weights.
    """

    retain: bool = True
    towards: bool = False
    quantized: bool = False
    sharded: bool = False
    adapter: bool = True


@dataclass
class StepGradient:
    """The gradient of one optimiser step over all micro-batches and processes, in two parts.

    The optimiser gets ``forget + retain_weight · retain``. P is the number of trained weights.

    Attributes:
        forget: (P,) gradient of γ · mean forget loss.
        retain: (P,) gradient of the mean retain loss, without its weight; zeros without a retain term.
        retain_loss: the mean retain loss; NaN without a retain term.
        retain_weight: α.
        forget_at: maps a (P,) shift of the trained weights to the forget gradient there; costs a forward and a backward.
    """

    forget: Tensor
    retain: Tensor
    retain_loss: float
    retain_weight: float
    forget_at: Callable[[Tensor], Tensor]

    @property
    def total(self) -> Tensor:
        """(P,) the gradient that the optimiser gets."""
        return self.forget + self.retain_weight * self.retain


class Wrapper:
    """Base class of a wrapper. Every method has a default.

    Attributes:
        paper: the source, with its arXiv number.
        cost: the added cost of a step, in words.
        splits_gradient: whether ``on_gradient`` is used. It needs the forget and retain gradients separately.
    """

    paper: ClassVar[str]
    cost: ClassVar[str]
    splits_gradient: ClassVar[bool] = True

    def refuses(self, setting: Setting) -> str | None:
        """Why the wrapper cannot be used in such a run, and what to do; None if it can."""
        if setting.towards:
            return "it changes a forgetting loss, and this method trains towards the forget set: remove the wrapper"
        if setting.sharded and self.splits_gradient:
            return "it needs whole gradients, and FSDP and DeepSpeed shard them: launch with ddp.yaml"
        return None

    def begin(self, model: nn.Module, kept: Sequence[Sequence[Encoded]], pad_token_id: int) -> None:
        """Prepare for a phase of training, on the model below any data-parallel wrapper.

        Args:
            model: the model before its first step.
            kept: the sets of rows to keep that the run reads; may be empty.
            pad_token_id: the padding token.
        """

    def after_step(self, model: nn.Module) -> None:
        """Change the weights after a step of the optimiser, before they are measured."""

    def during(self, model: nn.Module) -> AbstractContextManager[object]:
        """Context for the policy's forward and backward in training; not used when the model is measured."""
        return nullcontext()

    def on_gradient(self, step: StepGradient) -> None:
        """Change the gradient of a step in place."""


def cosine(first: Tensor, second: Tensor) -> float:
    """The cosine of the angle between two vectors; 0 if one of them is zero."""
    size = float(first.norm() * second.norm())
    return float(torch.dot(first, second)) / size if size > 0 else 0.0
