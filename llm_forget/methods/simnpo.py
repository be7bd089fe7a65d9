"""SimNPO: negative preference by the answer's own mean log-probability, without a reference and without a bias for length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_forget.methods import Method, check_number
from llm_forget.scores import AnswerScores


def simnpo_loss(mean_logps: Tensor, *, beta: float, margin: float) -> Tensor:
    """Push the mean log-probability of the answer down, ever more gently.

    ``loss = −(2/β) log σ(−(β/|y|) log π(y|x) − γ)``

    Args:
        mean_logps: (B,) mean log-prob per answer token, nats.
        beta: inverse temperature β, > 0.
        margin: reward margin γ; a larger one pushes on for longer.

    Returns:
        (B,) > 0, falling to 0 as the answer becomes unlikely. With γ = 0 an answer that is certain gives (2/β) ln 2, which is
        0.30807 for β = 4.5; with the reference's log-prob 0 and answers of one token it is NPO.

    Source: Fan et al. 2024, arXiv:2410.07163, the SimNPO objective.
    """
    return -(2.0 / beta) * logsigmoid(-beta * mean_logps - margin)


@dataclass(frozen=True)
class SimNPO(Method):
    """SimNPO with a retain term.

    Attributes:
        beta: inverse temperature β. 4.5 is what OpenUnlearning ships for TOFU, with the forget loss weighted 0.125 against a
            retain loss of weight 1 (its SimNPO.yaml, read in a copy); the paper's own text was not re-read.
        margin: γ; 0 in the authors' TOFU configuration (Unlearn-Simple, TOFU/config/forget.yaml).
    """

    beta: float = 4.5
    margin: float = 0.0

    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Fan et al. 2024, arXiv:2410.07163"

    def __post_init__(self) -> None:
        check_number("simnpo", "beta", self.beta, above=0)
        check_number("simnpo", "margin", self.margin, at_least=0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) SimNPO loss of each forget answer."""
        scored = forget.mask.any(-1)
        return simnpo_loss(forget.mean_logps, beta=self.beta, margin=self.margin) * scored
