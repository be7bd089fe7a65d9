"""Negative preference optimisation: DPO with the forget answer as the rejected response and no preferred response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores


def npo_loss(logps: Tensor, reference_logps: Tensor, *, beta: float) -> Tensor:
    """Lower the answer's probability relative to the reference; the gradient fades as the answer becomes unlikely.

    ``loss = −(2/β) log σ(−β r)`` with ``r = log π(y|x) − log π₀(y|x)``.

    Args:
        logps: (B,) summed answer log-probs under the policy, nats.
        reference_logps: (B,) the same under the reference; detached.
        beta: inverse temperature, > 0. As β → 0 the gradient tends to the gradient of ``logps``: gradient ascent on the sum.

    Returns:
        (B,) in (0, ∞), decreasing to 0 as the answer becomes less likely than under the reference. At π = π₀ it is (2/β) ln 2,
        which is 13.863 for β = 0.1.

    Source: Zhang, Lin, Bai and Mei 2024, arXiv:2404.05868, equation 3.
    """
    ratio = logps - reference_logps.detach()
    return -(2.0 / beta) * logsigmoid(-beta * ratio)


@dataclass(frozen=True)
class NPO(Method):
    """Negative preference optimisation with a retain term.

    Attributes:
        beta: inverse temperature β > 0; 0.1 in the paper's experiments.
    """

    beta: float = 0.1

    needs: ClassVar[Needs] = Needs(reference_logps=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Zhang et al. 2024, arXiv:2404.05868"

    def __post_init__(self) -> None:
        check_number("npo", "beta", self.beta, above=0, source="the paper uses 0.1")

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) NPO loss of each forget answer."""
        reference = needed(forget.reference_logps, "npo", "reference log-probs")
        return npo_loss(forget.logps, reference, beta=self.beta)
