"""Dual update of the retain weight: raise it while the retain loss is above a bound, and lower it otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.methods import check_number
from llm_forget.wrappers import Setting, StepGradient, Wrapper


def dual_step(weight: float, retain_loss: float, *, bound: float, step_size: float) -> float:
    """One ascent step of the multiplier of ``L_r ≤ ε``: ``λ ← max(0, λ + η (L_r − ε))``.

    Args:
        weight: λ ≥ 0.
        retain_loss: L_r, the mean retain loss of the step.
        bound: ε, the bound on L_r.
        step_size: η > 0.

    Returns:
        The new λ. λ = 1, L_r = 0.5, ε = 0.2 and η = 2 give 1.6; L_r = −0.5 gives 0.

    Source: Entesari et al. 2025, arXiv:2506.05314, dual update of the primal-dual algorithm.
    """
    return max(0.0, weight + step_size * (retain_loss - bound))


@dataclass
class Dual(Wrapper):
    """PDU's retain weight. It starts at the recipe's ``retain.weight``.

    Attributes:
        bound: ε ≥ 0; null means (1 + tolerance) times the retain loss of the first step, before any update.
        tolerance: relative tolerance ≥ 0 if ``bound`` is null, as in ε = (1 + α) L_r(π_ref) of the paper. The default is ours.
        step_size: η > 0; 1 in OpenUnlearning.
    """

    bound: float | None = None
    tolerance: float = 0.1
    step_size: float = 1.0

    paper: ClassVar[str] = "Entesari et al. 2025, arXiv:2506.05314"
    cost: ClassVar[str] = "one number"

    def __post_init__(self) -> None:
        self._bound: float | None = None
        self._weight: float | None = None
        if self.bound is not None:
            check_number("dual", "bound", self.bound, at_least=0)
        check_number("dual", "tolerance", self.tolerance, at_least=0)
        check_number("dual", "step_size", self.step_size, above=0)

    def refuses(self, setting: Setting) -> str | None:
        """It needs a retain term."""
        if not setting.retain:
            return "it sets the weight of a retain term, and there is none: set retain.name"
        return super().refuses(setting)

    def on_gradient(self, step: StepGradient) -> None:
        """Set the retain weight of this step, and update it for the next."""
        if self._bound is None:
            self._bound = (1.0 + self.tolerance) * step.retain_loss if self.bound is None else self.bound
        weight = step.retain_weight if self._weight is None else self._weight
        step.retain_weight = weight
        if math.isfinite(step.retain_loss):
            self._weight = dual_step(weight, step.retain_loss, bound=self._bound, step_size=self.step_size)

    def state_dict(self) -> dict[str, float | None]:
        """Bound and weight, for a checkpoint."""
        return {"bound": self._bound, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Restore a ``state_dict``."""
        self._bound, self._weight = state["bound"], state["weight"]
