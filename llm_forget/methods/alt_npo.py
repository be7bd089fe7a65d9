"""AltPO: prefer an alternative answer, which the model writes before training, over the forget answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number
from llm_forget.methods.dpo import preference_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class AltNPO(Method):
    """Alternate preference optimisation, which the paper (arXiv:2409.13474) calls AltPO.

    It is the loss of ``dpo`` at NPO's scale 2/β: ``loss = −(2/β) log σ(β (r(y⁺) − r(y)))``, which is (2/β) ln 2 at π = π₀.
    The preferred answer y⁺ has the form of the forget answer and other facts, so the model keeps its style. A refusal would
    also reveal that something was removed. The paper uses five alternatives per example; here it is one.

    Attributes:
        beta: inverse temperature β > 0; 0.1 as in the authors' configuration.
    """

    beta: float = 0.1

    needs: ClassVar[Needs] = Needs(reference_logps=True, alternative=True)
    default_retain: ClassVar[str | None] = "nll"
    alternative_source: ClassVar[str] = "model"
    paper: ClassVar[str] = "Mekala et al. 2024, arXiv:2409.13474"

    def __post_init__(self) -> None:
        check_number("alt_npo", "beta", self.beta, above=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) AltPO loss of each pair of answers."""
        return preference_loss(forget, "alt_npo", beta=self.beta, scale=None)
