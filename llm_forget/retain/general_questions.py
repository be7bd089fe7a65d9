"""KL divergence to the reference on general questions that ship with the package, at the reference's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs, check_number, needed
from llm_forget.retain import RetainTerm
from llm_forget.retain.kl import kl_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class GeneralQuestions(RetainTerm):
    """KL(π₀ ‖ π) on questions about everyday things, at the answers that the reference gives to them.

    It needs no data: the questions are a text file of the package, and the reference answers once, before training. The answers
    stay in memory, because a model that was fine-tuned on the forget rows may name them anywhere.

    Attributes:
        questions: largest number of questions; each costs one generated answer.
        max_new_tokens: longest answer, in tokens.
    """

    questions: int = 64
    max_new_tokens: int = 48

    rows: ClassVar[str] = "general"
    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "after Li and Hoiem 2016, arXiv:1606.09282 (learning without forgetting)"

    def __post_init__(self) -> None:
        check_number("general_questions", "questions", self.questions, at_least=1)
        check_number("general_questions", "max_new_tokens", self.max_new_tokens, at_least=1)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) divergence on each answer."""
        logits = needed(retain.logits, "general_questions", "the policy's logits")
        reference = needed(retain.reference_logits, "general_questions", "the reference's logits")
        return kl_loss(logits, reference, retain.mask)
