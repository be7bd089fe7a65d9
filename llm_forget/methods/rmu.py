"""RMU, representation misdirection: steer the hidden states of the forget answers, in one block, to a random direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def control_vector(width: int, *, coefficient: float, seed: int) -> Tensor:
    """Return c·u, (width,): entries drawn from [0, 1) with a seed, scaled to the norm ``coefficient``."""
    direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    control: Tensor = coefficient * direction / direction.norm()
    return control


def rmu_loss(hidden: Tensor, control: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of the squared distance to the control vector, ``‖h_ℓ − c·u‖²``.

    Args:
        hidden: (B, A, H) hidden states after block ℓ at the positions that predict the answer tokens.
        control: (H,) the control vector c·u.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) ≥ 0, and 0 if all states equal the control vector. h = (3, 0) against c·u = (0, 4) gives 25.

    Source: Li et al. 2024, arXiv:2403.03218, section 4 (forget loss).
    """
    return mean_over_answer((hidden - control).square().sum(-1), mask)


@dataclass(frozen=True)
class RMU(Method):
    """RMU with the ``activation`` retain term. It trains block ℓ and the two blocks before it.

    The distance is the squared norm of the paper: a sum over the entries of a state. Other toolkits take the mean, which
    divides both losses by the width of the state and keeps their ratio.

    Attributes:
        layer: block ℓ, from 0; null means 7/32 of the depth, which is block 7 in the 7B models of the paper.
        coefficient: norm c > 0 of the control vector; 20 is the default of OpenUnlearning. It must be well above the norm of
            the states at that block: OpenUnlearning uses 300 for TOFU and recommends tuning it.
        direction_seed: seed of the random direction u.
    """

    layer: int | None = None
    coefficient: float = 20.0
    direction_seed: int = 0

    default_retain: ClassVar[str | None] = "activation"
    paper: ClassVar[str] = "Li et al. 2024, arXiv:2403.03218"

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_number("rmu", "layer", self.layer, at_least=0)
        check_number("rmu", "coefficient", self.coefficient, above=0)
        check_number("rmu", "direction_seed", self.direction_seed, at_least=0)

    @property
    def needs(self) -> Needs:
        """The policy's hidden states after block ℓ."""
        return Needs(hidden=True, layer=self.layer)

    def trained_layers(self, layer: int) -> list[int]:
        """Block ℓ and the two before it; later blocks cannot change its output."""
        return list(range(max(layer - 2, 0), layer + 1))

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) mean squared distance of the states of each forget answer to the control vector."""
        hidden = needed(forget.hidden, "rmu", "hidden states")
        control = control_vector(hidden.shape[-1], coefficient=self.coefficient, seed=self.direction_seed)
        return rmu_loss(hidden, control.to(hidden.device), forget.mask)
