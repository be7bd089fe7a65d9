"""A training step with separate forget and retain gradients. Wrappers change them before the optimizer gets their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.wrappers import StepGradient, Wrapper

Terms = dict[str, Tensor]


@dataclass
class SplitStep:
    """Accumulates both gradients over the micro-batches of a step, applies the wrappers, and gives the sum to the optimizer.

    It works on the model below any data-parallel wrapper, and reduces over processes once per step.

    Attributes:
        wrappers: applied in order.
        terms_of: (inputs, True for the forget half) → the terms of that half: the weighted ``loss`` for the forget half, the
            unweighted ``retain_loss`` for the other.
        parameters: the trained parameters.
        reduce: the mean of a tensor over all processes.
        accumulation: micro-batches per step.
        has_retain: whether there is a retain loss.
    """

    wrappers: Sequence[Wrapper]
    terms_of: Callable[[dict[str, Tensor], bool], Terms]
    parameters: Sequence[nn.Parameter]
    reduce: Callable[[Tensor], Any]
    accumulation: int
    has_retain: bool
    _inputs: list[dict[str, Tensor]] = field(default_factory=list)
    _forget: Tensor | None = None
    _retain: Tensor | None = None
    _retain_loss: float = 0.0

    def add(self, inputs: dict[str, Tensor]) -> Terms:
        """Add one micro-batch. Returns its terms, detached."""
        self._inputs.append(inputs)
        terms, forget = self._gradient(inputs, of_forget=True)
        self._forget = forget if self._forget is None else self._forget + forget
        if self.has_retain:
            more, retain = self._gradient(inputs, of_forget=False)
            self._retain = retain if self._retain is None else self._retain + retain
            self._retain_loss += float(more["retain_loss"]) / self.accumulation
            terms = {**terms, "retain_loss": more["retain_loss"]}
        return terms

    def finish(self, retain_weight: float) -> StepGradient:
        """Apply the wrappers, and write the sum to the parameters' ``grad``."""
        if self._forget is None:
            raise RuntimeError("finish() before add()")
        retain = torch.zeros_like(self._forget) if self._retain is None else self.reduce(self._retain)
        loss = torch.tensor(self._retain_loss, device=self._forget.device)
        step = StepGradient(
            forget=self.reduce(self._forget),
            retain=retain,
            retain_loss=float(self.reduce(loss)) if self.has_retain else float("nan"),
            retain_weight=retain_weight,
            forget_at=self._forget_at,
        )
        for wrapper in self.wrappers:
            wrapper.on_gradient(step)
        self._write(step.total)
        self._inputs, self._forget, self._retain, self._retain_loss = [], None, None, 0.0
        return step

    def _gradient(self, inputs: dict[str, Tensor], *, of_forget: bool) -> tuple[Terms, Tensor]:
        terms = self.terms_of(inputs, of_forget)
        loss = terms["loss" if of_forget else "retain_loss"]
        detached = {name: value.detach() for name, value in terms.items()}
        found = torch.autograd.grad(loss / self.accumulation, list(self.parameters), allow_unused=True)
        parts = [
            torch.zeros_like(value) if gradient is None else gradient
            for value, gradient in zip(self.parameters, found, strict=True)
        ]
        return detached, torch.cat([part.float().flatten() for part in parts])

    @torch.no_grad()
    def _forget_at(self, change: Tensor) -> Tensor:
        before = [value.detach().clone() for value in self.parameters]
        for value, part in zip(self.parameters, self._split(change), strict=True):
            value.add_(part)
        try:
            with torch.enable_grad():
                gradients = [self._gradient(inputs, of_forget=True)[1] for inputs in self._inputs]
        finally:
            for value, own in zip(self.parameters, before, strict=True):
                value.copy_(own)
        moved: Tensor = self.reduce(torch.stack(gradients).sum(0))
        return moved

    def _write(self, total: Tensor) -> None:
        for value, part in zip(self.parameters, self._split(total), strict=True):
            value.grad = part.to(value.dtype).clone()

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [value.numel() for value in self.parameters])
        return [part.view_as(value) for value, part in zip(self.parameters, parts, strict=True)]
