"""KL divergence to the reference on the forget questions, asked about other names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs, check_number, needed
from llm_forget.retain import RetainTerm
from llm_forget.retain.kl import kl_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class VirtualNeighbours(RetainTerm):
    """KL(π₀ ‖ π) on questions like the forget questions, at the answers that the reference gives to them.

    Questions of the same wording about other people suffer most from unlearning, and protect best. They need no data: the name in
    a forget question is replaced by another one, and the reference answers once, before training. Each step draws other
    questions and names. They stay in memory.

    Attributes:
        questions: largest number of different questions; each costs one generated answer.
        known_names: share of the stand-ins that are names in the retain rows. The others are from a list of names.
        max_new_tokens: longest answer, in tokens.
    """

    questions: int = 256
    known_names: float = 0.5
    max_new_tokens: int = 48

    rows: ClassVar[str] = "virtual"
    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "after Chang and Lee 2025, arXiv:2502.11441"

    def __post_init__(self) -> None:
        check_number("virtual_neighbours", "questions", self.questions, at_least=1)
        check_number("virtual_neighbours", "max_new_tokens", self.max_new_tokens, at_least=1)
        if not 0 <= self.known_names <= 1:
            raise ValueError(f"virtual_neighbours: known_names is {self.known_names}; give a share between 0 and 1")

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each answer."""
        logits = needed(retain.logits, "virtual_neighbours", "the policy's logits")
        reference = needed(retain.reference_logits, "virtual_neighbours", "the reference's logits")
        return kl_loss(logits, reference, retain.mask)
