"""The two-sided goal of each forget row during training: which rows still take part, and which are pulled back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SLACK = 0.5  # nats per token below its target from which a row is pulled back


class RowGoal:
    """Follows the log-prob of every forget row.

    A row above its target has the method's loss. A row that is at most ``slack`` below its target takes part in no step, so that
    it costs nothing, until a measurement finds that it has moved. A row further below is pulled back.

    Args:
        targets: (n,) the mean log-prob per answer token that each forget row should reach, in nats.
        logps: (n,) the rows' current log-probs.
        slack: nats per token, 0 or more.
    """

    def __init__(self, targets: Tensor, logps: Tensor, *, slack: float = SLACK) -> None:
        self.targets, self.latest, self.slack = targets, logps.clone(), slack

    def seen(self, logps: Tensor, index: Tensor | None = None) -> None:
        """Take note of the log-probs of some rows: those of ``index``, or the first ones."""
        places = torch.arange(len(logps)) if index is None else index.cpu()
        self.latest[places] = logps.detach().float().cpu()

    def active(self, index: Tensor) -> Tensor:
        """(B,) True for the rows that take part in a step; at least one does, so that every step has a gradient."""
        gap = (self.latest - self.targets)[index.cpu()]
        found = (gap > 0) | (gap < -self.slack)
        if not found.any():
            found[gap.abs().argmax()] = True
        return found.to(index.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The log-probs so far, for a checkpoint."""
        return {"latest": self.latest}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.latest = state["latest"]

    def two_sided(self, losses: Tensor, logps: Tensor, index: Tensor) -> Tensor:
        """The loss of each row: the method's above its target, 0 at it, ``|log p − t|`` more than ``slack`` below it.

        Args:
            losses: (B,) the method's loss.
            logps: (B,) mean log-prob per answer token, in nats.
            index: (B,) the rows' indices in the forget set.

        Returns:
            (B,). t = −3 and slack ½ give the method's loss at −2, 0 at −3.2 and 1 at −4.
        """
        self.seen(logps, index)
        gap = logps - self.targets.to(logps.device)[index]
        back = gap.abs() * (gap.detach() < -self.slack)
        return torch.where(gap.detach() > 0, losses, back)
