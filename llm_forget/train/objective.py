"""The objective of a training step: γ · forget loss + α · retain loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llm_forget.methods import Method, Needs, needed
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores
from llm_forget.train.row_goal import RowGoal
from llm_forget.train.step_rows import StepRows, union
from llm_forget.train.teacher import Teacher


@dataclass(frozen=True)
class FurtherTerm:
    """A further retain term.

    Attributes:
        name: its name in the recipe.
        term: the term.
        weight: its weight in the loss.
    """

    name: str
    term: RetainTerm
    weight: float


@dataclass(frozen=True)
class Objective:
    """γ · mean forget loss + the retain terms, each with its weight.

    Attributes:
        method: defines the forget loss; None to train only on the rows to keep.
        retain: defines the retain loss, or None.
        forget_weight: γ.
        retain_weight: α, the weight of ``retain``.
        more: further retain terms.
        satisfied_below: the forget loss ignores an example whose mean answer probability is at or below this value.
        goal: the target of each forget row, and which rows still take part; None without row targets.
    """

    method: Method | None
    retain: RetainTerm | None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    satisfied_below: float | None = None
    more: tuple[FurtherTerm, ...] = ()
    goal: RowGoal | None = None

    @property
    def kept(self) -> list[FurtherTerm]:
        """All retain terms, the recipe's first one named ``retain``."""
        first = [] if self.retain is None else [FurtherTerm("retain", self.retain, self.retain_weight)]
        return [*first, *self.more]

    @property
    def total_weight(self) -> float:
        """The sum of the weights of the retain terms. The loss has their weighted mean times this number."""
        return sum((one.weight for one in self.kept), 0.0)

    def active(self, index: Tensor) -> Tensor | None:
        """The forget rows of a micro-batch that take part, (B,); None for all."""
        return None if self.goal is None or self.method is None else self.goal.active(index)

    @property
    def rows(self) -> StepRows:
        """The rows of a step, and the scores that they need."""
        found: dict[str, Needs] = {}
        for one in self.kept:
            known = found.get(one.term.rows)
            found[one.term.rows] = one.term.needs if known is None else union(known, one.term.needs)
        return StepRows(self.method.needs if self.method else None, found.pop("retain", None), found)

    @property
    def layer(self) -> int | None:
        """The block whose hidden states are read; None for the default.

        Raises:
            ValueError: method and retain term name different blocks.
        """
        rows = self.rows
        named = {
            needs.layer for needs in (rows.forget, *(one.term.needs for one in self.kept)) if needs is not None
        } - {None}
        if len(named) > 1:
            raise ValueError(
                f"method and retain term read hidden states of different layers {named}; set the same layer for both"
            )
        return named.pop() if named else None

    def terms(
        self, scores: Mapping[str, AnswerScores], index: Tensor | None = None, pairs: int | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch, as scalars.

        Args:
            scores: scores of the ``forget`` and ``retain`` rows, with everything that the method and the retain term need.
            index: the indices in the forget set of the forget rows; needed with row targets.
            pairs: pairs of the micro-batch; more than there are forget rows if some have reached their targets.

        Returns:
            ``loss``, the weighted sum; ``forget_loss``, without its weight; ``retain_loss``, the weighted mean of the retain
            terms; ``NAME_term_loss`` of each term if there are several; ``forget_probability``, the mean answer probability of
            the forget rows.
        """
        terms: dict[str, Tensor] = {}
        total = next(iter(scores.values())).token_logps.new_zeros(())
        if self.method is not None:
            losses = self.method.forget_loss(scores["forget"])
            probability = scores["forget"].mean_logps.detach().exp()
            if self.satisfied_below is not None:
                losses = losses * (probability > self.satisfied_below)
            if self.goal is not None and index is not None:
                losses = self.goal.two_sided(losses, scores["forget"].mean_logps, index)
            terms["forget_loss"], terms["forget_probability"] = (
                losses.sum() / (pairs or len(losses)),
                probability.mean(),
            )
            total = total + self.forget_weight * terms["forget_loss"]
        if self.kept:
            each = [one.term.retain_loss(scores[one.term.rows]).mean() for one in self.kept]
            if self.more:
                terms |= {f"{one.name}_term_loss": loss for one, loss in zip(self.kept, each, strict=True)}
            total_weight = self.total_weight
            weights = [one.weight / total_weight if total_weight else 1 / len(each) for one in self.kept]
            terms["retain_loss"] = torch.stack(
                [weight * loss for weight, loss in zip(weights, each, strict=True)]
            ).sum()
            total = total + total_weight * terms["retain_loss"]
        return {**terms, "loss": total}


@dataclass(frozen=True)
class References:
    """Scores of the reference model (the model before training), or a copy of it.

    Attributes:
        logps: (n forget rows,) summed answer log-probs in nats, if the method needs them.
        alternative_logps: (n forget rows,) the same for the alternative answers, if the method needs them.
        model: a frozen copy of the model, for full fine-tuning with a loss that runs the reference in every step.
        top: the reference's most likely tokens on the forget rows, if the method needs them.
        base_top: the same of the base.
        row_targets: (n forget rows,) the log-prob that each row should reach.
        swapped_top: as ``top``, on the forget rows with another name.
        novel: for each forget row (A,), which answer tokens are not in the style of the retain answers.
    """

    logps: Tensor | None = None
    alternative_logps: Tensor | None = None
    model: nn.Module | None = None
    top: Teacher | None = None
    base_top: Teacher | None = None
    row_targets: Tensor | None = None
    swapped_top: Teacher | None = None
    novel: list[Tensor] | None = None

    def add(self, forget: AnswerScores, index: Tensor, method: Method) -> AnswerScores:
        """Add what was computed before training, as far as the method needs it, to the scores of B forget rows.

        Args:
            forget: their scores.
            index: (B,) their indices in the forget set.
            method: the method.

        Raises:
            ValueError: something was not computed.
        """
        needs = method.needs
        if needs.reference_logps:
            forget = self.add_logps(forget, index, method)
        name = type(method).__name__
        if needs.reference_top:
            forget = replace(
                forget, reference_top=needed(self.top, name, "the reference's top tokens").of(index, forget.mask)
            )
        if needs.base_top:
            forget = replace(
                forget, base_top=needed(self.base_top, name, "the base's top tokens").of(index, forget.mask)
            )
        if needs.swapped_top:
            swapped = needed(self.swapped_top, name, "the top tokens for other names")
            forget = replace(forget, swapped_top=swapped.of(index, forget.mask))
        if needs.row_targets:
            targets = needed(self.row_targets, name, "row targets")
            forget = replace(forget, row_targets=targets.to(forget.mask.device)[index])
        if needs.novel:
            flags = needed(self.novel, name, "the novel tokens")
            found = torch.zeros_like(forget.mask)
            for place, row in enumerate(index.tolist()):
                found[place, : len(flags[row])] = flags[row].to(found.device)
            forget = replace(forget, novel=found)
        return forget

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
