"""The objective of a training step: γ · forget loss + α · retain loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from llm_forget.methods import Method
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores
from llm_forget.train.step_rows import StepRows


@dataclass(frozen=True)
class Objective:
    """γ · mean forget loss + α · mean retain loss.

    Attributes:
        method: defines the forget loss; None to train only on the retain rows.
        retain: defines the retain loss, or None.
        forget_weight: γ.
        retain_weight: α.
        satisfied_below: the forget loss ignores an example whose mean answer probability is at or below this value.
    """

    method: Method | None
    retain: RetainTerm | None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    satisfied_below: float | None = None

    @property
    def rows(self) -> StepRows:
        """The rows of a step, and the scores that they need."""
        return StepRows(self.method.needs if self.method else None, self.retain.needs if self.retain else None)

    @property
    def layer(self) -> int | None:
        """The block whose hidden states are read; None for the default.

        Raises:
            ValueError: method and retain term name different blocks.
        """
        rows = self.rows
        named = {needs.layer for needs in (rows.forget, rows.retain) if needs is not None} - {None}
        if len(named) > 1:
            raise ValueError(
                f"method and retain term read hidden states of different layers {named}; set the same layer for both"
            )
        return named.pop() if named else None

    def terms(self, scores: Mapping[str, AnswerScores]) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch, as scalars.

        Args:
            scores: scores of the ``forget`` and ``retain`` rows, with everything that the method and the retain term need.

        Returns:
            ``loss``, the weighted sum; ``forget_loss`` and ``retain_loss``, without their weights;
            ``forget_probability``, the mean answer probability of the forget rows.
        """
        terms: dict[str, Tensor] = {}
        total = next(iter(scores.values())).token_logps.new_zeros(())
        if self.method is not None:
            losses = self.method.forget_loss(scores["forget"])
            probability = scores["forget"].mean_logps.detach().exp()
            if self.satisfied_below is not None:
                losses = losses * (probability > self.satisfied_below)
            terms["forget_loss"], terms["forget_probability"] = losses.mean(), probability.mean()
            total = total + self.forget_weight * terms["forget_loss"]
        if self.retain is not None:
            terms["retain_loss"] = self.retain.retain_loss(scores["retain"]).mean()
            total = total + self.retain_weight * terms["retain_loss"]
        return {**terms, "loss": total}


@dataclass(frozen=True)
class References:
    """Scores of the reference model (the model before training), or a copy of it.

    Attributes:
        logps: (n forget rows,) summed answer log-probs in nats, if the method needs them.
        alternative_logps: (n forget rows,) the same for the alternative answers, if the method needs them.
        model: a frozen copy of the model, for full fine-tuning with a loss that runs the reference in every step.
    """

    logps: Tensor | None = None
    alternative_logps: Tensor | None = None
    model: nn.Module | None = None

    def add_logps(self, forget: AnswerScores, index: Tensor, method: Method) -> AnswerScores:
        """Add the reference's log-probs to the forget scores and to the scores of their alternatives.

        Args:
            forget: scores of B forget rows.
            index: (B,) their indices in the forget set.
            method: the method, for the error message.

        Raises:
            ValueError: the log-probs were not computed.
        """
        if self.logps is None:
            raise ValueError(f"{type(method).__name__} needs reference log-probs, but none were computed")
        device = forget.token_logps.device
        forget = replace(forget, reference_logps=self.logps.to(device)[index])
        if forget.alternative is not None and self.alternative_logps is not None:
            known = self.alternative_logps.to(device)[index]
            forget = replace(forget, alternative=replace(forget.alternative, reference_logps=known))
        return forget
