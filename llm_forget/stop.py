"""The stop rule: decides when a run ends and which state is the best. It reads only measurements, not the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

# The forget target without a holdout set: a typical probability of answers that a model has never seen.
NEVER_SEEN = 0.1
# With row targets, a run ends when a test finds no difference between log-probs and targets, enough rows are near their own, and
# the rows are near their targets on average: a small test overlooks a shift that an attack on all rows does not. It sees
# rows that are a little too likely, so less is allowed above.
PVALUE = 0.05
WITHIN = 1.5  # nats per answer token
SHARE = 0.9
ABOVE, BELOW = 0.2, 0.25  # nats per answer token
_FAR = 100.0  # nats that a log-prob of −∞ counts as


class Verdict(Enum):
    """The decision after a check."""

    GO_ON = "continue"
    KEEP = "continue; this is the best state so far"
    REACHED = "stop: the forget target is reached above the utility floor"
    BROKEN = "stop and restore the best state: the model stays below the utility floor"


@dataclass(frozen=True)
class Match:
    """How well the log-probs of rows match their targets (``train.row_targets``).

    Attributes:
        pvalue: of the two-sample Kolmogorov–Smirnov test between log-probs and targets.
        statistic: its D, in [0, 1].
        within: share of rows within ``WITHIN · tolerance`` nats of their own target.
        above: share of rows further above it.
        below: share of rows further below it.
        shift: mean of log-prob less target, in nats per token.
        tolerance: how near the rows must come, as a multiple of the usual.
    """

    pvalue: float
    statistic: float
    within: float
    above: float
    below: float
    shift: float = 0.0
    tolerance: float = 1.0

    @property
    def reached(self) -> bool:
        """Whether the test finds no difference, enough rows are near their own target, and so are all on average."""
        near = -BELOW * self.tolerance <= self.shift <= ABOVE * self.tolerance
        return self.pvalue > PVALUE and self.within >= SHARE and near

    @property
    def distance(self) -> float:
        """0 if every row is at its target: D, the share of rows that are far from their own, and the shift, at most 1."""
        return self.statistic + 1 - self.within + min(abs(self.shift), 1.0)


def match(logps: Sequence[float], targets: Sequence[float], tolerance: float = 1.0) -> Match:
    """Compare the log-probs of rows with their targets, as two samples and row by row.

    Args:
        logps: (n,) mean log-prob per answer token, in nats; NaN counts as far below.
        targets: (n,) their targets.
        tolerance: multiple of ``WITHIN``, ``ABOVE`` and ``BELOW``, above 0.

    Raises:
        ValueError: the lengths differ, or there are no rows.
    """
    if len(logps) != len(targets) or not logps:
        raise ValueError(
            f"{len(logps)} log-probs for {len(targets)} row targets; give one for each of at least one row"
        )
    from scipy.stats import ks_2samp

    found = [-math.inf if math.isnan(value) else value for value in logps]
    test = ks_2samp(found, list(targets))
    gaps = [own - wanted for own, wanted in zip(found, targets, strict=True)]
    above, below = (sum(sign * gap > WITHIN * tolerance for gap in gaps) / len(gaps) for sign in (1, -1))
    shift = math.fsum(gap if math.isfinite(gap) else -_FAR for gap in gaps) / len(gaps)
    return Match(float(test.pvalue), float(test.statistic), 1.0 - above - below, above, below, shift, tolerance)


@dataclass(frozen=True)
class Measurement:
    """Mean answer probability of both sets after a step: the geometric mean over tokens, then the mean over examples.

    Attributes:
        step: optimizer steps so far.
        forget: of the forget rows.
        retain: of the rows to keep; None without any.
        match: how well the forget rows match their own targets; None without row targets.
        neighbour: of virtual or mined neighbours; None if they have no floor.
    """

    step: int
    forget: float
    retain: float | None
    match: Match | None = None
    neighbour: float | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Measurement:
        """The measurement that ``asdict`` wrote."""
        match = stored.get("match")
        found = match and Match(**match)
        return cls(stored["step"], stored["forget"], stored["retain"], found, stored.get("neighbour"))


@dataclass
class StopRule:
    """Judges a sequence of measurements and remembers the best state.

    The best state is the one with the lowest forget probability among the states above the floor. Values below the target
    count as the target. If two states are equal, the one with the higher retain probability is better. A state below the floor
    is never the best, even if it has forgotten more. With row targets, the best state is the one that matches them best, from
    either side.

    Attributes:
        target: mean forget probability that counts as forgotten; None to train to the end. With row targets it is only shown.
        floor: lowest allowed retain probability (absolute); None without a retain set.
        patience: the run ends after this number of consecutive checks below the floor without a rise of the retain probability.
        neighbour_floor: lowest allowed probability of neighbours (absolute); None for no floor.
    """

    target: float | None
    floor: float | None
    patience: int
    best: Measurement | None = None
    broken_for: int = 0
    history: list[Measurement] = field(default_factory=list)
    neighbour_floor: float | None = None

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
        recovering = len(self.history) > 1 and _kept(now) > _kept(self.history[-2])
        self.broken_for = 0 if recovering else self.broken_for + 1
        return Verdict.BROKEN if self.broken_for >= self.patience else Verdict.GO_ON

    @property
    def known_before(self) -> bool | None:
        """Whether the first state was above the forget target; None without a target or a state."""
        by_row = bool(self.history) and self.history[0].match is not None
        return not self.reached(self.history[0]) if self.history and (by_row or self.target is not None) else None

    def passed_over(self) -> Measurement | None:
        """The last state below the floor that had forgotten more than the best one; None if there was none."""
        best = self.best
        if best is None or (self.floor is None and self.neighbour_floor is None):
            return None
        below = [now for now in self.history if not self.above_floor(now)]
        return next((now for now in reversed(below) if self._rank(now)[0] < self._rank(best)[0]), None)

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
        self.best = Measurement.read(state["best"]) if state["best"] else None
        self.history = [Measurement.read(item) for item in state["history"]]

    def reached(self, now: Measurement) -> bool:
        """Whether the forget target is reached."""
        if now.match is not None:
            return now.match.reached
        return self.target is not None and now.forget <= self.target

    def above_floor(self, now: Measurement) -> bool:
        """Whether the retain probability and the neighbours' are at or above their floors; NaN is not."""
        pairs = ((now.retain, self.floor), (now.neighbour, self.neighbour_floor))
        return all(floor is None or (kept is not None and kept >= floor) for kept, floor in pairs)

    def _rank(self, now: Measurement) -> tuple[float, float]:
        forget = math.inf if math.isnan(now.forget) else max(now.forget, self.target or 0.0)
        if now.match is not None and math.isfinite(forget):
            forget = now.match.distance
        return forget, -(now.retain or 0.0)


def _kept(now: Measurement) -> float:
    """The sum of the probabilities that have a floor."""
    return (now.retain or 0.0) + (now.neighbour or 0.0)
