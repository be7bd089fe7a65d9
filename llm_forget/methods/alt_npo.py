"""AltPO: the forget answer loses against a plausible other answer that the model wrote itself before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number
from llm_forget.methods.dpo import preference_loss
from llm_forget.scores import AnswerScores


@dataclass(frozen=True)
class AltNPO(Method):
    """Alternate preference optimisation (arXiv:2409.13474): ``dpo``'s loss at NPO's scale 2/β, with model-written winners.

    ``loss = −(2/β) log σ(β (r(y⁺) − r(y)))``, (2/β) ln 2 at π = π₀. A refusal changes how the model talks; an answer of the
    same kind with other facts leaves that as it is, and does not tell a stranger that something was removed.

    Attributes:
        beta: inverse temperature β. 0.1 stands as a comment in the authors' configuration (config/unlearn_llama3_2.yaml),
            beside a retain weight of 1; they write five alternatives an example at temperature 1.0 (config/generate.yaml),
            here it is one. The paper's own tables were not re-read.
    """

    beta: float = 0.1

    needs: ClassVar[Needs] = Needs(reference_logps=True, alternative=True)
    default_retain: ClassVar[str | None] = "nll"
    alternative_source: ClassVar[str] = "model"
    paper: ClassVar[str] = "Mekala et al. 2024, arXiv:2409.13474"

    def __post_init__(self) -> None:
        check_number("alt_npo", "beta", self.beta, above=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) loss of each pair of answers."""
        return preference_loss(forget, "alt_npo", beta=self.beta, scale=None)
