"""Sharpness-aware step: take the forget gradient at the worst nearby weights, which makes relearning harder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import check_number
from llm_forget.wrappers import StepGradient, Wrapper


def ascent_step(gradient: Tensor, *, rho: float) -> Tensor:
    """The step of norm ρ that raises the loss most, to first order: ``ε = ρ g / ‖g‖``.

    Args:
        gradient: (P,) gradient g.
        rho: norm ρ ≥ 0.

    Returns:
        (P,) step; 0 if the gradient is 0. g = (3, 4) and ρ = 1 give (0.6, 0.8).

    Source: Fan et al. 2025, arXiv:2502.05374, equation 5 (after Foret et al. 2020, arXiv:2010.01412).
    """
    size = gradient.norm()
    return gradient * (rho / size) if float(size) > 0 else gradient.clone()


@dataclass
class SAM(Wrapper):
    """``g = ∇ℓ_f(θ + ε) + α ∇ℓ_r(θ)``: the forget gradient at perturbed weights, the retain gradient at the current ones.

    Only trained weights are perturbed, which are the adapter's if there is one. One perturbation serves a whole step, so it
    does not depend on accumulation or the number of processes.

    Attributes:
        rho: ρ ≥ 0, norm of the perturbation.
    """

    rho: float = 0.01

    paper: ClassVar[str] = "Fan et al. 2025, arXiv:2502.05374"
    cost: ClassVar[str] = "the forget half of the step twice"

    def __post_init__(self) -> None:
        check_number("sam", "rho", self.rho, at_least=0)

    def on_gradient(self, step: StepGradient) -> None:
        """Replace the forget gradient by the gradient at the perturbed weights."""
        step.forget = step.forget_at(ascent_step(step.forget, rho=self.rho))
