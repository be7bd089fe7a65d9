"""One unlearning run, from a checked recipe to a complete run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from accelerate import PartialState
from rich.console import Console
from torch import nn
from transformers import set_seed

from llm_forget.config import TrainConfig, UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.data.schedule import schedule
from llm_forget.errors import RecipeError
from llm_forget.model.load import check_adapter_fits, load_model, load_tokenizer, locate_model
from llm_forget.model.measure import SampleMeter, answer_logps
from llm_forget.model.packing import packed_attention
from llm_forget.model.precision import held_in_bf16
from llm_forget.model.weights import frozen_copy, in_shards, trainable_state
from llm_forget.stop import NEVER_SEEN, Measurement, StopRule, Verdict
from llm_forget.train.alternatives import alternative_source, encoded_alternatives
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairDataset
from llm_forget.train.build import NOWHERE, Parts, check_layer, make_parts, make_trainable, trained_blocks
from llm_forget.train.callbacks import MetricsLog, ProgressBar, StopCallback, note
from llm_forget.train.checkpoint import run_identity
from llm_forget.train.objective import Objective, References
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.train.resume import Saving, checkpoint_folder, drop_checkpoints
from llm_forget.train.run_folder import RunRecord, explained_if_full, write_run
from llm_forget.train.subtraction import AdapterSession
from llm_forget.train.trackers import drop_logs, tracking
from llm_forget.train.trainer import UnlearningTrainer


def unlearn(recipe: UnlearnRecipe, console: Console | None = None) -> RunRecord:
    """Run a recipe and write its run folder.

    Args:
        recipe: the checked recipe.
        console: where progress goes; standard error by default.

    Returns:
        What was done and measured, as written to ``result.json``.

    Raises:
        UserError: the recipe, the data or the way of launching cannot work; before a model is loaded wherever possible.
    """
    if recipe.output_dir == NOWHERE:
        raise RecipeError("output_dir is empty; name the folder that the run is to be written to")
    parts = make_parts(recipe)
    base = locate_model(recipe.model.name)
    if recipe.model.adapter is not None:
        check_adapter_fits(base, recipe.model.adapter)
    tokenizer = load_tokenizer(recipe.model)
    sets = prepare(recipe, tokenizer)

    def load() -> Any:
        return load_model(recipe.model, trainable=recipe.adapter is None)[0]

    return run_on(recipe, parts, sets, tokenizer, load, console).record


@dataclass(frozen=True)
class Finished:
    """A run that is over.

    Attributes:
        record: what was done and measured.
        model: with its adapter, or trained in full.
        metrics: a row a step and a check.
    """

    record: RunRecord
    model: Any
    metrics: list[dict[str, Any]]


def run_on(
    recipe: UnlearnRecipe,
    parts: Parts,
    sets: UnlearnSets,
    tokenizer: Any,
    load: Callable[[], Any],
    console: Console | None = None,
    *,
    in_memory: bool = False,
) -> Finished:
    """What a recipe and a model in memory share: adapter, training, and the run folder.

    Args:
        recipe: the checked recipe; with ``output_dir`` ``NOWHERE`` nothing is written.
        parts: the parts that it names, from ``make_parts``.
        sets: its data.
        tokenizer: with a padding token.
        load: gives the model, once everything else has been checked.
        console: where progress goes; standard error by default.
        in_memory: the model was given, and lies in no folder that is known.

    Raises:
        UserError: alternatives that the method needs are not there, or the disk is full.
    """
    console = console or Console(stderr=True)
    method = parts.method
    source = alternative_source(recipe, method, sets.forget_examples)
    alternatives = None
    if source not in (None, "model"):
        alternatives = encoded_alternatives(recipe, sets.forget_examples, tokenizer, source)
    for warning in sets.warnings:
        console.print(f"[yellow]note[/] {warning}")

    started = time.monotonic()
    model = load()
    set_seed(recipe.seed)  # of the adapter's first values; the Trainer seeds again, too late for them
    if source == "model":
        alternatives = encoded_alternatives(recipe, sets.forget_examples, tokenizer, source, model, console)
    blocks = trained_blocks(method, model, parts.layer)
    if blocks is None:
        check_layer(recipe.adapter, Objective(method, parts.retain), model)
    model = make_trainable(model, recipe.adapter, blocks, compiled=recipe.train.compile)
    with packed_attention(model, wanted=recipe.train.packs, say=partial(note, console)):
        run = Run(recipe, parts, sets, model, tokenizer.pad_token_id, console, alternatives, in_memory=in_memory)
        with tracking(recipe) as run.metrics.trackers:
            outcome = run.execute()
    record = RunRecord(
        method=str(recipe.method["name"]),
        reason=outcome.reason,
        before=outcome.before,
        after=outcome.after,
        forget_target=run.target,
        utility_floor=run.floor,
        steps=outcome.steps,
        seconds=time.monotonic() - started,
        details=outcome.details,
        data_digests=sets.digests,
        forget_rows=len(sets.forget),
        retain_rows=len(sets.retain),
    )
    if recipe.output_dir != NOWHERE:
        # every process takes part where weights lie in shards
        state = trainable_state(model) if in_shards(model) else None
        if PartialState().is_main_process:
            with explained_if_full(recipe.output_dir):
                write_run(recipe, record, model, tokenizer, outcome.metrics, state, in_memory=in_memory)
            drop_logs(recipe)
            drop_checkpoints(recipe.output_dir)
            console.print(f"{record.method}: {record.reason} ({recipe.output_dir})", highlight=False, soft_wrap=True)
        PartialState().wait_for_everyone()
    return Finished(record, model, outcome.metrics)


@dataclass(frozen=True)
class _Outcome:
    reason: str
    before: Measurement
    after: Measurement
    steps: int
    details: dict[str, float]
    metrics: list[dict[str, Any]]


class Run:
    """One run in memory: the model, what it is measured on, and the phases it goes through."""

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
        in_memory: bool = False,
    ) -> None:
        self.method, self.retain, self.wrappers = parts.method, parts.retain, parts.wrappers
        self.recipe, self.sets, self.alternatives, self._in_memory = recipe, sets, alternatives, in_memory
        self.model, self.pad_token_id, self.console = model, pad_token_id, console
        self.meter = SampleMeter(sets.forget[: recipe.stop.rows], sets.validation, pad_token_id)
        self.metrics = MetricsLog()
        self.before = self.meter(model, 0)
        self.target = self._forget_target()
        kept = self.before.retain
        self.floor = None if kept is None else kept * recipe.stop.utility_floor
        self.steps = 0
        self._phase = 0

    def _forget_target(self) -> float | None:
        wanted = self.recipe.stop.forget_target
        if wanted != "holdout":
            return wanted
        if not self.sets.holdout:
            return NEVER_SEEN
        return float(self.meter.probabilities(self.model, self.sets.holdout).mean())

    def execute(self) -> _Outcome:
        """Train, turn round if the method does, and measure."""
        self._say(self.before)
        finish = getattr(self.method, "finish", None)
        # A retain term, or a method's own healing, wins ground back and is given the time; otherwise nothing does.
        patience = self.recipe.stop.patience if self.retain is not None or finish is not None else 1
        rule = StopRule(self.target, self.floor, patience)
        self.stopping = StopCallback(self.meter, rule, self.recipe.stop.every, self.report)
        self.stopping.begin(self.model, self.before)
        details: dict[str, float] = {}
        non_finite_at = None
        if finish is not None:
            details = finish(AdapterSession(self, self.stopping))
        else:
            non_finite_at = self.train(self.objective(), self.pairs(), "unlearning", guarded=True).non_finite_at
        reason = self.stopping.settle(self.model, non_finite_at)
        after = self.meter(self.model, self.steps)
        self._say(after)
        return _Outcome(reason, self.before, after, self.steps, details, self.metrics.rows)

    def objective(self) -> Objective:
        """What the method's own phase minimises."""
        per_example = self.recipe.stop.per_example
        if per_example == "auto":
            per_example = not self.method.bounded
        return Objective(
            method=self.method,
            retain=self.retain,
            forget_weight=self.recipe.forget_weight,
            retain_weight=self.recipe.retain.weight,
            satisfied_below=self.target if per_example and not self.method.towards else None,
        )

    def pairs(self) -> list[tuple[int, int | None]]:
        """The recipe's steps: which forget row meets which retain row."""
        train = self.recipe.train
        kept = self.sets.retain if self.retain is not None else []
        return schedule(
            _lengths(self.sets.forget),
            _lengths(kept),
            batch=train.batch_size * train.gradient_accumulation * PartialState().num_processes,
            epochs=train.epochs,
            seed=self.recipe.seed,
        )

    def train(
        self,
        objective: Objective,
        pairs: Sequence[tuple[int, int | None]],
        label: str,
        *,
        guarded: bool = False,
        train: TrainConfig | None = None,
    ) -> UnlearningTrainer:
        """One phase of training, with the recipe's settings unless others are given.

        Each phase has checkpoints of its own: a resumed run passes through the phases that were complete without a step.

        Args:
            objective: what is minimised.
            pairs: the steps.
            label: for the progress bar.
            guarded: check every few steps, and stop by the recipe's rule.
            train: other settings.
        """
        bar = ProgressBar(self.console, f"{self.recipe.method['name']}: {label}")
        self._bar = bar
        method = objective.method
        trainer = UnlearningTrainer(
            self.model,
            unlearning_arguments(
                train or self.recipe.train,
                self.recipe.seed,
                self.recipe.adapter is not None,
                autocast=held_in_bf16(self.model),
            ),
            PairDataset(self.sets.forget, self.sets.retain, pairs, self.alternatives if method is not None else None),
            objective,
            pad_token_id=self.pad_token_id,
            reference=self._references(objective),
            wrappers=self.wrappers if method is not None else (),
            callbacks=[bar, self.metrics, *([self.stopping] if guarded else [])],
        )
        self._phase += 1
        if self.metrics.trackers is not None:
            self.metrics.trackers.offset = self.steps
        trainer.saving = self._saving()
        trainer.stateful = {
            "metrics": self.metrics,
            "checks": self.stopping,
            "method": method,
            "retain": objective.retain,
            **{f"wrapper {place}": wrapper for place, wrapper in enumerate(self.wrappers)},
        }
        trainer.resume_or_begin()
        self.steps += trainer.state.global_step
        return trainer

    def _saving(self) -> Saving | None:
        recipe = self.recipe
        if recipe.output_dir == NOWHERE:
            return None
        return Saving(
            folder=checkpoint_folder(recipe.output_dir) / f"phase-{self._phase}",
            identity=self._identity,
            every=recipe.train.save_steps,
            keep=recipe.train.keep_checkpoints,
            at_end=hasattr(self.method, "finish"),
            resume=recipe.resume,
            say=self._note,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        sets = self.sets
        rows = {"forget": sets.forget, "retain": sets.retain, "validation": sets.validation, "holdout": sets.holdout}
        return run_identity(self.recipe, rows, self.before, in_memory=self._in_memory)

    def _note(self, text: str) -> None:
        note(self.console, text)

    def _references(self, objective: Objective) -> References:
        """The reference is the model as it is before the first step: one pass over the forget set, and no second copy.

        Only full fine-tuning with a loss that runs the reference every step needs a copy.
        """
        rows, forget, others = objective.rows, None, None
        if rows.forget is not None and rows.forget.reference_logps:
            forget = answer_logps(self.model, self.sets.forget, self.pad_token_id)[0]
            if rows.scored_alternatives and self.alternatives is not None:
                others = answer_logps(self.model, self.alternatives, self.pad_token_id)[0]
        every_step = any(group.reference for group in rows.groups) and self.recipe.adapter is None
        return References(forget, others, frozen_copy(self.model) if every_step else None)

    def report(self, now: Measurement, verdict: Verdict) -> None:
        """Keep and show a measurement."""
        self.metrics.check(now, verdict)
        self._say(now)

    def _say(self, now: Measurement) -> None:
        kept = "" if now.retain is None else f" · retain {now.retain:.3f} (floor {self.floor:.3f})"
        wanted = "" if self.target is None else f" (target {self.target:.3f})"
        text = f"step {now.step}: forget {now.forget:.3f}{wanted}{kept}"
        bar = getattr(self, "_bar", None)
        if PartialState().is_main_process:
            bar.say(text) if bar else self.console.print(
                f"{self.recipe.method['name']}: {text}", highlight=False, soft_wrap=True
            )


def _lengths(rows: Sequence[Encoded]) -> list[int]:
    return [len(row.input_ids) for row in rows]
