"""Gradient-rectified unlearning: take out of the forget gradient what would raise the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import check_number
from llm_forget.wrappers import Setting, StepGradient, Wrapper


def rectify(forget: Tensor, retain: Tensor) -> Tensor:
    """The closest gradient to ``forget`` that does not, to first order, raise the retain loss.

    ``g − (⟨g, r⟩ / ‖r‖²) r`` where ⟨g, r⟩ < 0, and g itself elsewhere.

    Args:
        forget: (P,) g.
        retain: (P,) r.

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

    The recipe's retain weight α still adds α · retain to what is left; ``retain: {weight: 0}`` is the method as its code
    has it, where the retain rows only bound the direction.

    Attributes:
        smoothing: share of the newest retain gradient in the average; 0.8 in the authors' trainer (gru.py for
            OpenUnlearning, read in a copy).
    """

    smoothing: float = 0.8

    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2503.09117"
    cost: ClassVar[str] = "three vectors of the size of the trained weights"

    def __post_init__(self) -> None:
        self._average: Tensor | None = None
        check_number("gru", "smoothing", self.smoothing, above=0)
        if self.smoothing > 1:
            raise ValueError(f"gru: smoothing is {self.smoothing}; it is a share, 1 at most")

    def refuses(self, setting: Setting) -> str | None:
        """Without retain rows there is nothing to project against."""
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
        """The moving average, for a run that is interrupted."""
        return {"average": self._average}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._average = state["average"]
