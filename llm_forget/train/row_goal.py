"""The two-sided goal of each forget row during training: which rows still take part, and which are pulled back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SLACK = 0.5  # nats per token below its target from which a row is pulled back
FLAT = 1.5  # of the mean excess of entropy that is asked: a row above it takes part


class RowGoal:
    """Follows the log-prob of every forget row.

    A row above its target has the method's loss. A row that is at most ``slack`` below its target takes part in no step, so that
    it costs nothing, until a measurement finds that it has moved. A row further below is pulled back. With a teacher's entropies,
    a row that is much less sure than its teacher has the method's loss as well.

    Args:
        targets: (n,) the mean log-prob per answer token that each forget row should reach, in nats.
        logps: (n,) the rows' current log-probs.
        slack: nats per token, 0 or more.
        entropies: (n,) the teacher's mean entropy per answer token of each row, in nats; None if it does not matter.
        most_excess: nats above it that the rows may have on average; a single row may have ``FLAT`` times as much.
    """

    def __init__(
        self,
        targets: Tensor,
        logps: Tensor,
        *,
        slack: float = SLACK,
        entropies: Tensor | None = None,
        most_excess: float = math.inf,
    ) -> None:
        self.targets, self.latest, self.slack = targets, logps.clone(), slack
        self.entropies, self.flat = entropies, FLAT * most_excess
        self.latest_entropies = torch.full_like(targets, math.inf)  # of the last step that a row took part in

    @property
    def excess(self) -> float | None:
        """The mean over rows of the entropy above the teacher's; None without a teacher or before every row took part."""
        if self.entropies is None or not self.latest_entropies.isfinite().all():
            return None
        return float((self.latest_entropies - self.entropies).mean())

    def seen(self, logps: Tensor, index: Tensor | None = None) -> None:
        """Take note of the log-probs of some rows: those of ``index``, or the first ones."""
        places = torch.arange(len(logps)) if index is None else index.cpu()
        self.latest[places] = logps.detach().float().cpu()

    def active(self, index: Tensor) -> Tensor:
        """(B,) True for the rows that take part in a step; at least one does, so that every step has a gradient."""
        gap = (self.latest - self.targets)[index.cpu()]
        found = (gap > 0) | (gap < -self.slack)
        if self.entropies is not None:
            found |= (self.latest_entropies - self.entropies)[index.cpu()] > self.flat
        if not found.any():
            found[gap.abs().argmax()] = True
        return found.to(index.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The log-probs so far, for a checkpoint."""
        return {"latest": self.latest, "latest_entropies": self.latest_entropies}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.latest, self.latest_entropies = state["latest"], state["latest_entropies"]

    def two_sided(self, losses: Tensor, logps: Tensor, index: Tensor, entropies: Tensor | None = None) -> Tensor:
        """The loss of each row: the method's above its target, 0 at it, ``|log p − t|`` more than ``slack`` below it.

        A row that is less sure than its teacher by more than is allowed has the method's loss in any case.

        Args:
            losses: (B,) the method's loss.
            logps: (B,) mean log-prob per answer token, in nats.
            index: (B,) the rows' indices in the forget set.
            entropies: (B,) mean entropy per answer token in nats; needed with a teacher.

        Returns:
            (B,). t = −3 and slack ½ give the method's loss at −2, 0 at −3.2 and 1 at −4.
        """
        self.seen(logps, index)
        gap = logps - self.targets.to(logps.device)[index]
        back = gap.abs() * (gap.detach() < -self.slack)
        unfinished = gap.detach() > 0
        if self.entropies is not None and entropies is not None:
            self.latest_entropies[index.cpu()] = entropies.detach().float().cpu()
            unfinished |= entropies.detach() - self.entropies.to(entropies.device)[index] > self.flat
        return torch.where(unfinished, losses, back)
