"""MASC: hold the margin of the true token over the reference's other candidates below a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, mean_over_answer


def masc_loss(
    logits: Tensor,
    reference_logits: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    top: int,
    beta: float,
    rho: float,
    eta: float,
) -> Tensor:
    """Hinge on the margin ``m_t = β z_y − log Σ_{k∈K} exp(β z_k)``, K the reference's most likely tokens without y.

    ``loss = mean over answer tokens of max(m_t − (τ − η), 0) / η`` with ``τ = log(ρ / (1 − ρ))``. For β = 1, m_t > τ means that
    the true token has more than a share ρ of the probability of y and K.

    Args:
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.
        top: size of K; at most V − 1.
        beta: β > 0, sharpness of the margin.
        rho: ρ in (0, 1), the largest share that the true token may have.
        eta: η > 0, distance from τ at which the pressure begins.

    Returns:
        (B,) ≥ 0, and 0 where all margins are η below τ. z = (ln 3, 0), y the first token, K the second: m = ln 3, and with
        ρ = ½ and η = 1 the loss is ln 3 + 1 ≈ 2.0986.

    Source: margin self-correction, arXiv:2606.02920.
    """
    chosen = tokens[..., None]
    others = reference_logits.detach().scatter(-1, chosen, float("-inf"))
    rivals = others.topk(min(top, logits.shape[-1] - 1), dim=-1).indices
    margin = beta * logits.gather(-1, chosen).squeeze(-1) - (beta * logits.gather(-1, rivals)).logsumexp(-1)
    bound = math.log(rho / (1 - rho)) - eta
    return mean_over_answer((margin - bound).clamp(min=0) / eta, mask)


@dataclass(frozen=True)
class MASC(Method):
    """Margin self-correction. Its authors also project the forget gradient: add ``wrappers: [{name: gru}]``.

    Attributes:
        weight: λ, which multiplies the loss; 0.05 on TOFU and 0.5 on MUSE-News in the paper.
        rho: largest share of the true token. The paper has 0.7, which only the most certain tokens exceed, and its own stop rule;
            0.1 is ours, because the runs here end when answers are as unlikely as unseen ones.
        eta: width of the hinge; 0.25 on TOFU and 0.5 on MUSE-News.
        top: number of other candidates; 10 on TOFU and 2 on MUSE-News.
        beta: sharpness of the margin; 1 on TOFU and 5 on MUSE-News.
    """

    weight: float = 0.05
    rho: float = 0.1
    eta: float = 0.25
    top: int = 10
    beta: float = 1.0

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "arXiv:2606.02920"

    def __post_init__(self) -> None:
        for name in ("weight", "eta", "beta"):
            check_number("masc", name, getattr(self, name), above=0)
        check_number("masc", "top", self.top, at_least=1)
        if not 0 < self.rho < 1:
            raise ValueError(f"masc: rho is {self.rho}; it must be between 0 and 1")

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) hinge of each forget answer."""
        logits = needed(forget.logits, "masc", "the policy's logits")
        reference = needed(forget.reference_logits, "masc", "the reference's logits")
        settings = {"top": int(self.top), "beta": self.beta, "rho": self.rho, "eta": self.eta}
        return self.weight * masc_loss(logits, reference, forget.tokens, forget.mask, **settings)  # type: ignore[arg-type]
