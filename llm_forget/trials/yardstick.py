"""What a trial is measured by: the distance of the forget rows to what they should be, and the harm to what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_forget.data.encode import Encoded
from llm_forget.model.measure import answer_logps
from llm_forget.stop import NEVER_SEEN
from llm_forget.train.shared import Shared
from llm_forget.train.teacher import teacher_of
from llm_forget.trials.slots import Result

_MOST = 64  # rows of each set to keep
_LOST = 0.5  # harm from which no run was seen to come back within the floors
_LEAST_HARM = 0.05
_IDLE = 0.01  # of the way; a run may begin slowly, so that the first rung asks for no more
_HALF = 0.5  # of the way
_WORST = 50.0  # nats; a row of an infinite distance counts so much


@dataclass(frozen=True)
class Yardstick:
    """How trials of one search are measured.

    Attributes:
        wanted: the log-prob per answer token that each forget row should have, in nats.
        entropies: the mean entropy that its answer tokens should have, in nats; None if it is not known.
        source: where they are from: the oracle, row targets, or a usual value.
        one_sided: whether only rows above it count, because it is no more than a usual value.
        kept: set → its rows.
        before: set → its mean answer probability before unlearning.
        floors: set → share of it that must be kept.
        start: distance before unlearning.
    """

    wanted: Sequence[float]
    entropies: Sequence[float] | None
    source: str
    one_sided: bool
    kept: Mapping[str, Sequence[Encoded]] = field(repr=False)
    before: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0

    def distance(self, logps: Sequence[float], entropies: Sequence[float]) -> float:
        """How far rows are from what they should be: the mean over rows, in nats per answer token.

        A row's distance is √((log p − wanted)² + (entropy − wanted entropy)²). Log-probs alone would reward answers that are
        flatter than any model gives them, which attacks that compare a token with its alternatives see.
        """
        gaps = [own - wanted for own, wanted in zip(logps, self.wanted, strict=True)]
        sized = [max(gap, 0.0) if self.one_sided else abs(gap) for gap in gaps]
        if self.entropies is not None:
            flat = (own - wanted for own, wanted in zip(entropies, self.entropies, strict=True))
            sized = [math.hypot(*both) for both in zip(sized, flat, strict=True)]
        return math.fsum(min(gap, _WORST) if math.isfinite(gap) else _WORST for gap in sized) / len(sized)

    def hopeless(self, way: Sequence[tuple[float, float]], harm: float) -> bool:
        """Whether a run can end early, whatever the others did.

        It can if half of a set is lost; if it is further away than before unlearning and has done harm as well; if it has gone
        less than 1 % of the way; or if, after the first rung, it would not come half of the way at the pace since the rung
        before.

        Args:
            way: (share of its steps, distance) at each rung so far.
            harm: now.
        """
        at, distance = way[-1]
        if harm >= _LOST or (distance >= self.start and harm > _LEAST_HARM) or distance > (1 - _IDLE) * self.start:
            return True
        if len(way) < 2:
            return False
        before, further = way[-2]
        at_the_end = distance - (further - distance) / (at - before) * (1 - at)
        return at_the_end > _HALF * self.start

    def harm(self, now: Mapping[str, float]) -> float:
        """The largest share of probability that a set has lost, in [0, 1]."""
        lost = [1 - now[name] / before for name, before in self.before.items() if before > 0]
        return min(max([0.0, *(one if math.isfinite(one) else 1.0 for one in lost)]), 1.0)

    def measure(
        self,
        model: Any,
        forget: Sequence[Encoded],
        pad: int,
        *,
        retain: float | None = None,
    ) -> Result:
        """Measure a model.

        Args:
            model: the model.
            forget: the forget rows.
            pad: the padding token.
            retain: the mean answer probability of the rows to keep that are measured, if it was just measured.
        """
        logps, entropies = scored(model, forget, pad)
        now = {} if retain is None or "retain" not in self.kept else {"retain": retain}
        now |= {name: _mean(model, rows, pad) for name, rows in self.kept.items() if name not in now}
        broken = {
            name: _or_one(share * self.before[name] - now[name]) for name, share in self.floors.items() if name in now
        }
        details: dict[str, Any] = {f"kept_{name}": value for name, value in now.items()}
        details["forget"] = math.fsum(math.exp(value) for value in logps) / len(logps)
        details["entropy"] = math.fsum(entropies) / len(entropies)
        return Result(self.distance(logps, entropies), self.harm(now), broken, details)


def scored(model: Any, rows: Sequence[Encoded], pad: int) -> tuple[list[float], list[float]]:
    """The mean log-prob and the mean entropy of each row's answer tokens, in nats."""
    teacher, means = teacher_of(model, rows, pad)
    return means.tolist(), teacher.row_entropies.tolist()


def _mean(model: Any, rows: Sequence[Encoded], pad: int) -> float:
    return float(answer_logps(model, rows, pad)[1].mean())


def _or_one(value: float) -> float:
    return value if math.isfinite(value) else 1.0


def make_yardstick(
    model: Any,
    shared: Shared,
    pad: int,
    *,
    oracle: tuple[Sequence[float], Sequence[float]] | None,
    neighbours: Sequence[Encoded],
    floors: Mapping[str, float],
) -> Yardstick:
    """Measure the model before unlearning, and decide what its forget rows should be.

    Args:
        model: the model before unlearning.
        shared: the rows.
        pad: the padding token.
        oracle: what ``scored`` says of the forget rows under a model that never saw them; None without one.
        neighbours: rows to keep that nothing trains on.
        floors: ``retain`` and ``neighbours`` → share of the probability to keep; made rows count as neighbours.
    """
    start = shared.start
    own = scored(model, shared.sets.forget, pad)
    entropies: Sequence[float] | None = None
    if oracle is not None:
        (wanted, entropies), source = oracle, "oracle"
    elif start is not None:
        wanted, source = list(start.targets.values), "row targets"
        if start.calibrated is not None:
            entropies = start.calibrated.teacher.row_entropies.tolist()
    else:
        wanted, source = [math.log(NEVER_SEEN)] * len(own[0]), "usual"
    kept: dict[str, Sequence[Encoded]] = {
        "retain": shared.sets.validation,
        "neighbours": neighbours[:: max(1, len(neighbours) // _MOST)],
        **{name: rows[:_MOST] for name, rows in shared.more.items() if name != "mined"},
    }
    kept = {name: rows for name, rows in kept.items() if rows}
    before = {name: _mean(model, rows, pad) for name, rows in kept.items()}
    by_set = {name: floors["retain" if name == "retain" else "neighbours"] for name in kept}
    found = Yardstick(wanted, entropies, source, source == "usual", kept, before, by_set)
    return replace(found, start=found.distance(*own))
