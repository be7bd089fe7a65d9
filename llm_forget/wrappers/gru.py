"""Gradient-rectified unlearning: remove the component of the forget gradient that would raise the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import check_number
from llm_forget.wrappers import Setting, StepGradient, Wrapper


def rectify(forget: Tensor, retain: Tensor) -> Tensor:
    """The closest gradient to ``forget`` that does not, to first order, raise the retain loss.

    ``g − (⟨g, r⟩ / ‖r‖²) r`` if ⟨g, r⟩ < 0, else ``g``.

    Args:
        forget: (P,) forget gradient g.
        retain: (P,) retain gradient r.

    Returns:
        (P,) with ⟨·, r⟩ ≥ 0. g = (1, −1) against r = (0, 2) gives (1, 0).

    Source: Wang et al. 2025, arXiv:2503.09117, the closed form of the constrained update.
    """
    along = torch.dot(forget, retain)
    size = torch.dot(retain, retain)
    return forget - (along / size) * retain if float(along) < 0 and float(size) > 0 else forget


@dataclass
class GRU(Wrapper):
    """Projection of the forget gradient against a moving average of the retain gradient.

    The retain weight α of the recipe still adds α · retain to the projected gradient. ``retain: {weight: 0}`` matches the
    authors' code, in which the retain rows only constrain the direction.

    Attributes:
        smoothing: weight of the newest retain gradient in the average, in (0, 1]; 0.8 in the authors' trainer.
    """

    smoothing: float = 0.8

    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2503.09117"
    cost: ClassVar[str] = "three vectors of the size of the trained weights"

    def __post_init__(self) -> None:
        self._average: Tensor | None = None
        check_number("gru", "smoothing", self.smoothing, above=0)
        if self.smoothing > 1:
            raise ValueError(f"gru: smoothing is {self.smoothing}; it must be at most 1")

    def refuses(self, setting: Setting) -> str | None:
        """It needs a retain term."""
        if not setting.retain:
            return "it projects against the retain gradient, and there is no retain term: set retain.name"
        return super().refuses(setting)

    def on_gradient(self, step: StepGradient) -> None:
        """Project the forget gradient."""
        newest = step.retain
        before = torch.zeros_like(newest) if self._average is None else self._average.to(newest.device)
        self._average = self.smoothing * newest + (1 - self.smoothing) * before
        step.forget = rectify(step.forget, self._average)

    def state_dict(self) -> dict[str, Tensor | None]:
        """The moving average, for a checkpoint."""
        return {"average": self._average}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Restore a ``state_dict``."""
        self._average = state["average"]
