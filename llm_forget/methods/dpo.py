"""Direct preference optimisation: an alternative answer wins over the forget answer, both against the reference."""

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
    """Widen the gap between the alternative's and the forget answer's log-ratio to the reference.

    ``loss = −scale · log σ(β (r(y⁺) − r(y)))`` with ``r(y) = log π(y|x) − log π₀(y|x)``.

    Args:
        logps: (B,) summed log-probs of the forget answers under the policy, nats.
        reference_logps: (B,) the same under the reference; no gradient flows into it.
        alternative_logps: (B,) of the alternatives under the policy.
        alternative_reference_logps: (B,) of the alternatives under the reference; no gradient flows into it.
        beta: inverse temperature, > 0.
        scale: what the whole is multiplied by: 1 in DPO, 2/β in NPO's convention.

    Returns:
        (B,) > 0, falling to 0 as the alternative wins. At π = π₀ it is scale · ln 2. Where the alternative's ratio stays 0 and
        the scale is 2/β it is NPO's loss.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; for unlearning TOFU, arXiv:2401.06121.
    """
    ratio = logps - reference_logps.detach()
    alternative_ratio = alternative_logps - alternative_reference_logps.detach()
    return -scale * logsigmoid(beta * (alternative_ratio - ratio))


def preference_loss(forget: AnswerScores, method: str, *, beta: float, scale: float | None) -> Tensor:
    """``dpo_loss`` of scores; a scale of None is 2/β. Examples without a scored token in either answer give 0."""
    other = needed(forget.alternative, method, "an alternative answer")
    reference = needed(forget.reference_logps, method, "reference log-probs")
    other_reference = needed(other.reference_logps, method, "reference log-probs of the alternative")
    scale = 2.0 / beta if scale is None else scale
    losses = dpo_loss(forget.logps, reference, other.logps, other_reference, beta=beta, scale=scale)
    return losses * (forget.mask.any(-1) | other.mask.any(-1))


@dataclass(frozen=True)
class DPO(Method):
    """DPO against the forget answer, a refusal as the winner unless the recipe names another (then known as IdkDPO).

    Attributes:
        beta: inverse temperature β; 0.1 in DPO's and TOFU's experiments.
        scale: factor of the loss; null is 2/β, as in TOFU's code and in OpenUnlearning (its compute_dpo_loss, read in a
            copy), so that retain weights mean the same as for npo; 1 is the DPO paper's own.
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
