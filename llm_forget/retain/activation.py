"""Activation distance: keep the hidden states at the retain answers close to the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs, check_number, needed
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores, mean_over_answer


def activation_loss(hidden: Tensor, reference_hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over answer tokens of ``‖h_ℓ − h⁰_ℓ‖²``.

    Args:
        hidden: (B, A, H) the policy's states after block ℓ at the positions that predict the answer tokens.
        reference_hidden: (B, A, H) the reference's states; detached.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) ≥ 0, and 0 if both are equal. (1, 2) against (0, 0) gives 5.

    Source: Li et al. 2024, arXiv:2403.03218, section 4 (retain loss of RMU).
    """
    return mean_over_answer((hidden - reference_hidden.detach()).square().sum(-1), mask)


@dataclass(frozen=True)
class Activation(RetainTerm):
    """RMU's retain term.

    Attributes:
        layer: the block, from 0; null means the method's block, or 7/32 of the depth if the method has none.
    """

    layer: int | None = None

    paper: ClassVar[str] = "Li et al. 2024, arXiv:2403.03218"

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_number("activation", "layer", self.layer, at_least=0)

    @property
    def needs(self) -> Needs:
        """The hidden states of policy and reference after that block."""
        return Needs(hidden=True, reference_hidden=True, layer=self.layer)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) mean squared distance on each retain answer."""
        hidden = needed(retain.hidden, "activation", "hidden states")
        reference = needed(retain.reference_hidden, "activation", "the reference's hidden states")
        return activation_loss(hidden, reference, retain.mask)
