"""Direct preference optimisation: prefer an alternative answer over the forget answer, both relative to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores


def dpo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    alternative_logps: Tensor,
    alternative_reference_logps: Tensor,
    *,
    beta: float,
    scale: float,
) -> Tensor:
    """Increase the log-ratio of the alternative, and decrease that of the forget answer, relative to the reference.

    ``loss = −scale · log σ(β (r(y⁺) − r(y)))`` with ``r(y) = log π(y|x) − log π₀(y|x)``.

    Args:
        logps: (B,) summed log-probs of the forget answers under the policy, nats.
        reference_logps: (B,) the same under the reference; detached.
        alternative_logps: (B,) summed log-probs of the alternatives under the policy, nats.
        alternative_reference_logps: (B,) the same under the reference; detached.
        beta: inverse temperature, > 0.
        scale: factor of the loss: 1 in DPO, 2/β in NPO's convention.

    Returns:
        (B,) > 0, decreasing to 0 as the alternative is preferred. At π = π₀ it is scale · ln 2. With scale 2/β and an
        alternative whose log-ratio is 0 it equals NPO's loss.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; for unlearning see TOFU, arXiv:2401.06121.
    """
    ratio = logps - reference_logps.detach()
    alternative_ratio = alternative_logps - alternative_reference_logps.detach()
    return -scale * logsigmoid(beta * (alternative_ratio - ratio))


def preference_loss(forget: AnswerScores, method: str, *, beta: float, scale: float | None) -> Tensor:
    """``dpo_loss`` of scores, (B,). A scale of None means 2/β. Examples without answer tokens give 0."""
    other = needed(forget.alternative, method, "an alternative answer")
    reference = needed(forget.reference_logps, method, "reference log-probs")
    other_reference = needed(other.reference_logps, method, "reference log-probs of the alternative")
    scale = 2.0 / beta if scale is None else scale
    losses = dpo_loss(forget.logps, reference, other.logps, other_reference, beta=beta, scale=scale)
    return losses * (forget.mask.any(-1) | other.mask.any(-1))


@dataclass(frozen=True)
class DPO(Method):
    """DPO with the forget answer as the rejected response. The preferred one is a refusal by default (known as IdkDPO).

    Attributes:
        beta: inverse temperature β > 0; 0.1 in the experiments of DPO and TOFU.
        scale: factor of the loss. null means 2/β, as in TOFU's code and in OpenUnlearning, so that a retain weight means the
            same as for npo. The DPO paper uses 1.
    """

    beta: float = 0.1
    scale: float | None = None

    needs: ClassVar[Needs] = Needs(reference_logps=True, alternative=True)
    default_retain: ClassVar[str | None] = "nll"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv:2305.18290; TOFU, arXiv:2401.06121"

    def __post_init__(self) -> None:
        check_number("dpo", "beta", self.beta, above=0)
        if self.scale is not None:
            check_number("dpo", "scale", self.scale, above=0, source="or null for 2/beta")

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) DPO loss of each pair of answers."""
        return preference_loss(forget, "dpo", beta=self.beta, scale=self.scale)
