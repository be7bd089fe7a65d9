"""One run in memory: a model, its data, and the phases of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor, nn

from llm_forget.config import TrainConfig, UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import schedule
from llm_forget.model.adapted import without_zero_adapter
from llm_forget.model.measure import SampleMeter, answer_logps, refuse_not_finite
from llm_forget.model.weights import frozen_copy, held_in_bf16
from llm_forget.stop import NEVER_SEEN, Measurement, StopRule, Verdict
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import Pair, PairDataset
from llm_forget.train.build import NOWHERE, Parts, kept_in_loss
from llm_forget.train.calibration import Calibrated
from llm_forget.train.callbacks import AfterStep, MetricsLog, ProgressBar, StopCallback, not_known_before, note
from llm_forget.train.checkpoint import run_identity
from llm_forget.train.coreset import coreset
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.natural import RATE, Natural, TellLoss, natural_optimizer
from llm_forget.train.objective import Objective, References
from llm_forget.train.origin import BaseScores, OpenBase
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.resume import Saving, checkpoint_folder
from llm_forget.train.row_goal import SLACK, RowGoal
from llm_forget.train.row_targets import RowTargets
from llm_forget.train.start import Start, measure_start
from llm_forget.train.subtraction import AdapterSession
from llm_forget.train.teacher import Teacher, novel_tokens, teacher_of
from llm_forget.train.trainer import UnlearningTrainer
from llm_forget.utils.terminal import say

Watch = Callable[[nn.Module, Measurement], None]


@dataclass(frozen=True)
class Outcome:
    """The measurements of a run, and why it ended.

    Attributes:
        reason: a sentence: why the run ended and which state was kept.
        known_before: whether the forget probability was above the forget target before the first step; None without one.
        before: the measurement before the first step.
        after: the measurement of the kept state.
        steps: optimizer steps of all phases.
        details: numbers that the method reports.
        metrics: one row per step and per check.
        reached: whether the kept state is at the forget target; None without one.
    """

    reason: str
    known_before: bool | None
    before: Measurement
    after: Measurement
    steps: int
    details: dict[str, float]
    metrics: list[dict[str, Any]]
    reached: bool | None


class Run:
    """One run in memory.

    Args:
        recipe: the checked recipe.
        parts: its method, retain term and wrappers.
        sets: its data.
        model: the model, ready to train.
        pad_token_id: the padding token.
        console: a console for progress.
        alternatives: an alternative answer to each forget prompt, in the order of the forget rows; None if the method reads
            none.
        base: the folder or hub id of the model; None if the caller loaded it.
        more_rows: the further rows that the retain terms read, by set.
        origin: scores of the model before it learned the forget rows; None if there is none at hand.
        swapped: the reference on the forget rows with other names, if the method needs it.
        curvature: that of rows to keep in each layer's outputs, for the optimizer ``natural``.
        start: the forget rows before the first step; None to measure them.
        open_base: opens the base for a method that trains on it; None if there is none at hand.
    """

    def __init__(
        self,
        recipe: UnlearnRecipe,
        parts: Parts,
        sets: UnlearnSets,
        model: nn.Module,
        pad_token_id: int,
        console: Console,
        alternatives: list[Encoded] | None = None,
        *,
        base: str | None = None,
        more_rows: Mapping[str, list[Encoded]] = MappingProxyType({}),
        origin: BaseScores | None = None,
        swapped: Teacher | None = None,
        curvature: Mapping[str, Tensor] = MappingProxyType({}),
        start: Start | None = None,
        open_base: OpenBase | None = None,
    ) -> None:
        self.method, self.retain, self.wrappers, self.more = parts.method, parts.retain, parts.wrappers, parts.more
        self._more_rows, self._origin, self._swapped, self._curvature = more_rows, origin, swapped, curvature
        self._start, self.open_base = start, open_base
        self.recipe, self.sets, self.alternatives, self._base = recipe, sets, alternatives, base
        self.model, self.pad_token_id, self.console = model, pad_token_id, console
        self.meter = SampleMeter(sets.forget[: recipe.stop.rows], sets.validation, pad_token_id)
        if recipe.stop.neighbour_floor is not None:
            self.meter.neighbours = [row for rows in more_rows.values() for row in rows[: recipe.stop.rows]]
        self.metrics = MetricsLog()
        self.watch: Watch | None = None  # called after every check
        self.row_targets: RowTargets | None = None
        self.goal: RowGoal | None = None
        self._calibrated: Calibrated | None = None
        self._first_logps: Tensor | None = None  # of the forget rows, before the first step
        with without_zero_adapter(model):
            self.before = self._measure_before()
            refuse_not_finite((self.before.forget, self.before.retain, self.before.neighbour))
            self.target = self._forget_target()
        kept = self.before.retain
        self.floor = None if kept is None else kept * recipe.stop.utility_floor
        aims = {"forget_target": self.target, "utility_floor": self.floor, "neighbour": self.before.neighbour}
        self.metrics.progress.begin({"forget": self.before.forget, "retain": kept, **aims})
        self.steps = 0
        self._phase = 0
        self._natural: Natural | None = None
        self._taken = 0  # pairs of the phases so far

    def _measure_before(self) -> Measurement:
        """Measure the model before the first step, and set the row targets and the teacher that recipe and method ask for."""
        by_row = self.recipe.stop.forget_target == "rows"
        needs = self.method.needs
        targets = by_row or needs.row_targets or needs.base_top
        if not targets and not needs.reference_logps:
            return self.meter(self.model, 0)
        # one pass serves the measurement, the row targets and the reference
        if not targets:
            self._first_logps, known = answer_logps(self.model, self.sets.forget, self.pad_token_id)
            return self.meter.of(self.model, 0, known[: self.recipe.stop.rows])
        start = self._start or measure_start(self.model, self.sets, self._origin, self.pad_token_id)
        self._first_logps, self.row_targets, self._calibrated = start.logps, start.targets, start.calibrated
        if by_row:
            self.meter.targets = self.row_targets.values[: self.recipe.stop.rows]
            self.meter.tolerance = tolerance = self.recipe.stop.tolerance
            if not self.method.towards:
                wanted = torch.tensor(self.row_targets.values)
                self.goal = RowGoal(wanted, start.probabilities.log(), slack=SLACK * tolerance)
                self.meter.seen = self.goal.seen
        return self.meter.of(self.model, 0, start.probabilities[: self.recipe.stop.rows])

    def _forget_target(self) -> float | None:
        wanted = self.recipe.stop.forget_target
        if self.meter.targets is not None:
            return math.fsum(map(math.exp, self.meter.targets)) / len(self.meter.targets)
        if wanted is None or isinstance(wanted, float):
            return wanted
        if not self.sets.holdout:
            return NEVER_SEEN
        return float(self.meter.probabilities(self.model, self.sets.holdout).mean())

    def execute(self) -> Outcome:
        """Train, run the method's ``finish`` if it has one (adapter subtraction negates its adapter there), and measure."""
        self._say(self.before)
        finish = self.method.finish
        # Only a retain term or a method's own healing phase can restore retain probability, and it needs time.
        recovers = self.retain is not None or bool(self.more) or finish is not None
        patience = self.recipe.stop.patience if recovers else 1
        near, share = self.before.neighbour, self.recipe.stop.neighbour_floor
        neighbour_floor = None if near is None or share is None else near * share
        rule = StopRule(self.target, self.floor, patience, neighbour_floor=neighbour_floor)
        self.stopping = StopCallback(self.meter, rule, self.recipe.stop.every, self.report, keeps=recovers)
        self.stopping.begin(self.model, self.before)
        if rule.known_before is False:
            self._note(
                f"{not_known_before(rule)}; check model.name and data.forget, or set stop.forget_target to null or to a "
                "lower probability to train further"
            )
        details: dict[str, float] = {}
        non_finite_at = None
        if finish is not None:
            details = finish(AdapterSession(self, self.stopping))
        else:
            non_finite_at = self.train(self.objective(), self.pairs(), "unlearning", early_stopping=True).non_finite_at
        reason = self.stopping.settle(self.model, non_finite_at)
        kept = self.stopping.rule.best
        if kept is not None and finish is None and self.stopping.ended_by is Verdict.REACHED:  # the state last measured
            after = kept
        else:
            after = self.meter(self.model, self.steps if kept is None else kept.step)
            self._say(after)
        reached = None if kept is None or rule.known_before is None else rule.reached(kept)
        if reached is False and self.meter.targets is not None:
            reason = (
                f"NOT FORGOTTEN: the row targets were not reached within the floors. {reason[0].upper()}{reason[1:]}"
            )
        return Outcome(reason, rule.known_before, self.before, after, self.steps, details, self.metrics.rows, reached)

    def objective(self) -> Objective:
        """The objective of the unlearning phase."""
        per_example = self.recipe.stop.per_example
        retain, more = kept_in_loss(self.recipe, self.retain, self.more)
        if per_example == "auto":
            per_example = not self.method.bounded
        return Objective(
            method=self.method,
            retain=retain,
            forget_weight=self.recipe.forget_weight,
            retain_weight=self.recipe.retain.weight,
            satisfied_below=self.target if per_example and not self.method.towards and self.goal is None else None,
            goal=self.goal,
            more=more,
        )

    def pairs(self) -> list[Pair]:
        """The pairs of the run in the order of training."""
        train = self.recipe.train
        kept = self.kept if self.objective().rows.retain is not None else []
        found = schedule(
            _lengths(self.sets.forget),
            _lengths([self.sets.retain[index] for index in kept]),
            batch=train.batch_size * train.gradient_accumulation * PartialState().num_processes,
            epochs=train.epochs,
            seed=self.recipe.seed,
        )
        return [(forget, None if retain is None else kept[retain]) for forget, retain in found]

    @cached_property
    def kept(self) -> list[int]:
        """The retain rows that the run trains on."""
        return coreset(self.sets, self.recipe.retain.most)

    def train(
        self,
        objective: Objective,
        pairs: Sequence[Pair],
        label: str,
        *,
        early_stopping: bool = False,
        train: TrainConfig | None = None,
    ) -> UnlearningTrainer:
        """Train one phase.

        Each phase has its own checkpoints. A resumed run takes no steps in complete phases.

        Args:
            objective: the objective to minimise.
            pairs: the pairs of the phase.
            label: the label of the progress bar.
            early_stopping: measure every few steps, and apply the recipe's stop rule.
            train: training settings; the recipe's by default.
        """
        wrappers = self.wrappers if objective.method is not None else ()
        for wrapper in wrappers:
            wrapper.begin(self.model, [self.sets.retain, *self._more_rows.values()], self.pad_token_id)
        bar = ProgressBar(self.console, f"{self.recipe.method['name']}: {label}")
        self._bar = bar
        method = objective.method
        self._natural, tell = self._make_natural(train or self.recipe.train)
        trainer = UnlearningTrainer(
            self.model,
            unlearning_arguments(
                train or self.recipe.train,
                self.recipe.seed,
                self.recipe.adapter is not None,
                autocast=held_in_bf16(self.model),
            ),
            PairDataset(
                self.sets.forget,
                self.sets.retain,
                pairs,
                self.alternatives if method is not None else None,
                {name: self._more_rows[name] for name in objective.rows.more},
                self._taken,
            ),
            objective,
            pad_token_id=self.pad_token_id,
            reference=self._references(objective),
            wrappers=wrappers,
            callbacks=[bar, self.metrics, *tell, AfterStep(wrappers), *([self.stopping] if early_stopping else [])],
            optimizer=self._natural,
        )
        for callback in tell:
            callback.trainer = trainer
        self._phase += 1
        self._taken += len(pairs)
        if self.metrics.trackers is not None:
            self.metrics.trackers.offset = self.steps
        trainer.saving = self._saving()
        trainer.stateful = {
            "metrics": self.metrics,
            "checks": self.stopping,
            "method": method,
            **{f"retain {one.name}": one.term for one in objective.more},
            "retain": objective.retain,
            "goal": self.goal,
            **{f"wrapper {place}": wrapper for place, wrapper in enumerate(self.wrappers)},
        }
        trainer.resume_or_begin()
        self.steps += trainer.state.global_step
        return trainer

    def _make_natural(self, train: TrainConfig) -> tuple[Natural | None, list[TellLoss]]:
        """The optimizer ``natural`` and the callback that tells it the loss, if the recipe asks for it."""
        if train.optimizer != NATURAL:
            return None, []
        optimizer = natural_optimizer(self.model, self._curvature, train.learning_rate or RATE)
        return optimizer, [TellLoss(optimizer)]

    def _saving(self) -> Saving | None:
        recipe = self.recipe
        if recipe.output_dir == NOWHERE:
            return None
        return Saving(
            folder=checkpoint_folder(recipe.output_dir) / f"phase-{self._phase}",
            identity=self._identity,
            every=recipe.train.save_steps,
            keep=recipe.train.keep_checkpoints,
            at_end=self.method.finish is not None,
            resume=recipe.resume,
            say=self._note,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        sets = self.sets
        rows = {"forget": sets.forget, "retain": sets.retain, "validation": sets.validation, "holdout": sets.holdout}
        return run_identity(self.recipe, rows, self.before, self._base)

    def _note(self, text: str) -> None:
        note(self.console, text)

    def _references(self, objective: Objective) -> References:
        """Compute the scores of the reference, which is the model before the first step.

        Its log-probs are those of the pass over the forget set before the first step. A copy of the model is needed only for full
        fine-tuning with a loss that runs the reference in every step.
        """
        rows, forget, others = objective.rows, None, None
        if rows.forget is not None and rows.forget.reference_logps:
            forget = self._first_logps if self._phase == 0 else None
            if forget is None:
                forget = answer_logps(self.model, self.sets.forget, self.pad_token_id)[0]
            if rows.scored_alternatives and self.alternatives is not None:
                others = answer_logps(self.model, self.alternatives, self.pad_token_id)[0]
        every_step = any(group.reference for group in rows.groups) and self.recipe.adapter is None
        top = None
        if rows.forget is not None and rows.forget.reference_top:
            top = teacher_of(self.model, self.sets.forget, self.pad_token_id)[0]
        return References(
            forget,
            others,
            frozen_copy(self.model) if every_step else None,
            top,
            self._base_top(),
            None if self.row_targets is None else torch.tensor(self.row_targets.values),
            self._swapped,
            self._novel() if self.method.needs.novel else None,
        )

    def _base_top(self) -> Teacher | None:
        if self._calibrated is not None:
            return self._calibrated.teacher
        return None if self._origin is None else self._origin.top

    def _novel(self) -> list[Tensor]:
        if self._calibrated is not None:
            return self._calibrated.counted
        return novel_tokens(self.sets.forget, self.sets.retain)

    def report(self, now: Measurement, verdict: Verdict) -> None:
        """Log and show a measurement."""
        self.metrics.check(now, verdict)
        self._say(now)
        if self._natural is not None:
            self._pace(self._natural, now)
        if self.watch is not None:
            self.watch(self.model, now)

    def _pace(self, optimizer: Natural, now: Measurement) -> None:
        """Tell the optimizer what its steps cost so far, and how far they came."""
        start, floor = self.before, self.floor
        if floor is None or start.retain is None or now.retain is None or floor >= start.retain:
            return
        if start.match is not None and now.match is not None:
            way, left = start.match.shift, now.match.shift
        else:
            way, left = start.forget - (self.target or 0.0), now.forget - (self.target or 0.0)
        if way > 0:
            optimizer.pace((start.retain - now.retain) / (start.retain - floor), 1 - left / way)

    def _say(self, now: Measurement) -> None:
        kept = "" if now.retain is None else f" · retain {now.retain:.3f} (floor {self.floor:.3f})"
        wanted = "" if self.target is None else f" (target {self.target:.3f})"
        near = "" if now.neighbour is None else f" · neighbours {now.neighbour:.3f}"
        text = f"step {now.step}: forget {now.forget:.3f}{wanted}{kept}{near}"
        bar = getattr(self, "_bar", None)
        if PartialState().is_main_process:
            short = f"forget {now.forget:.3f}" + ("" if now.retain is None else f" retain {now.retain:.3f}")
            bar.say(text, short) if bar else say(self.console, f"{self.recipe.method['name']}: {text}")


def _lengths(rows: Sequence[Encoded]) -> list[int]:
    return [len(row.input_ids) for row in rows]
