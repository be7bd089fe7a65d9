"""SimNPO: NPO on the length-normalised log-probability of the answer, without a reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_forget.methods import Method, check_number
from llm_forget.scores import AnswerScores


def simnpo_loss(mean_logps: Tensor, *, beta: float, margin: float) -> Tensor:
    """Lower the mean log-probability of the answer; the gradient fades as the answer becomes unlikely.

    ``loss = −(2/β) log σ(−(β/|y|) log π(y|x) − γ)``

    Args:
        mean_logps: (B,) mean log-prob per answer token, nats.
        beta: inverse temperature β, > 0.
        margin: reward margin γ; with a larger margin the gradient fades later.

    Returns:
        (B,) > 0, decreasing to 0 as the answer becomes unlikely. With γ = 0 a certain answer gives (2/β) ln 2, which is 0.30807
        for β = 4.5. For one-token answers and a reference log-prob of 0 it equals NPO.

    Source: Fan et al. 2024, arXiv:2410.07163, the SimNPO objective.
    """
    return -(2.0 / beta) * logsigmoid(-beta * mean_logps - margin)


@dataclass(frozen=True)
class SimNPO(Method):
    """SimNPO with a retain term.

    Attributes:
        beta: inverse temperature β > 0; 4.5 in OpenUnlearning's configuration, with forget weight 0.125 and retain weight 1.
        margin: γ ≥ 0; 0 in the authors' TOFU configuration.
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
