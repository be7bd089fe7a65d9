"""The stop rule: decides when a run ends and which state is the best. It reads only measurements, not the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

# The forget target without a holdout set: a typical probability of answers that a model has never seen.
NEVER_SEEN = 0.1


class Verdict(Enum):
    """The decision after a check."""

    GO_ON = "continue"
    KEEP = "continue; this is the best state so far"
    REACHED = "stop: the forget target is reached above the utility floor"
    BROKEN = "stop and restore the best state: the model stays below the utility floor"


@dataclass(frozen=True)
class Measurement:
    """Mean answer probability of both sets after a step: the geometric mean over tokens, then the mean over examples."""

    step: int
    forget: float
    retain: float | None


@dataclass
class StopRule:
    """Judges a sequence of measurements and remembers the best state.

    The best state is the one with the lowest forget probability among the states above the floor. Values below the target
    count as the target. If two states are equal, the one with the higher retain probability is better. A state below the floor
    is never the best, even if it has forgotten more.

    Attributes:
        target: mean forget probability that counts as forgotten; None to train to the end.
        floor: lowest allowed retain probability (absolute); None without a retain set.
        patience: the run ends after this number of consecutive checks below the floor without a rise of the retain probability.
    """

    target: float | None
    floor: float | None
    patience: int
    best: Measurement | None = None
    broken_for: int = 0
    history: list[Measurement] = field(default_factory=list)

    def judge(self, now: Measurement) -> Verdict:
        """Record one measurement and decide whether to continue."""
        self.history.append(now)
        if self.above_floor(now):
            self.broken_for = 0
            if self.reached(now):
                self.best = now
                return Verdict.REACHED
            if self.best is None or self._rank(now) < self._rank(self.best):
                self.best = now
                return Verdict.KEEP
            return Verdict.GO_ON
        # While the retain probability rises again, the run continues.
        recovering = len(self.history) > 1 and (now.retain or 0.0) > (self.history[-2].retain or 0.0)
        self.broken_for = 0 if recovering else self.broken_for + 1
        return Verdict.BROKEN if self.broken_for >= self.patience else Verdict.GO_ON

    @property
    def known_before(self) -> bool | None:
        """Whether the first state was above the forget target; None without a target or a state."""
        return None if self.target is None or not self.history else not self.reached(self.history[0])

    def passed_over(self) -> Measurement | None:
        """The last state below the floor that had forgotten more than the best one; None if there was none."""
        if self.best is None or self.floor is None:
            return None
        below = [now for now in self.history if not self.above_floor(now) and now.retain is not None]
        return next((now for now in reversed(below) if now.forget < self.best.forget), None)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule, for a checkpoint."""
        return {
            "broken_for": self.broken_for,
            "best": self.best and asdict(self.best),
            "history": [asdict(item) for item in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.broken_for = state["broken_for"]
        self.best = Measurement(**state["best"]) if state["best"] else None
        self.history = [Measurement(**item) for item in state["history"]]

    def reached(self, now: Measurement) -> bool:
        """Whether the forget target is reached."""
        return self.target is not None and now.forget <= self.target

    def above_floor(self, now: Measurement) -> bool:
        """Whether the retain probability is at or above the floor; NaN is not."""
        return self.floor is None or (now.retain is not None and now.retain >= self.floor)

    def _rank(self, now: Measurement) -> tuple[float, float]:
        forget = math.inf if math.isnan(now.forget) else max(now.forget, self.target or 0.0)
        return forget, -(now.retain or 0.0)
