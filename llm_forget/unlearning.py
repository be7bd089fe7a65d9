"""One unlearning run, from a checked recipe to a complete run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from rich.console import Console
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from llm_forget.arguments import check_arguments, unlearning_arguments
from llm_forget.checks import Checks, Gauge
from llm_forget.config import RetainConfig, UnlearnRecipe, build
from llm_forget.data.encode import Encoded
from llm_forget.data.pairs import schedule
from llm_forget.data.prepare import UnlearnSets, prepare
from llm_forget.errors import RecipeError
from llm_forget.guards import CancellationGuard
from llm_forget.identity import run_identity
from llm_forget.launch import check_launch
from llm_forget.measure import answer_logps, held_in_bf16
from llm_forget.methods import Method
from llm_forget.models import add_adapter, check_adapter_fits, compile_blocks, load_model, load_tokenizer, locate_model
from llm_forget.plugins import find_class
from llm_forget.progress import ProgressBar
from llm_forget.resume import Saving, check_checkpoints, checkpoint_folder, drop_checkpoints
from llm_forget.retain import RetainTerm
from llm_forget.runfolder import RunRecord, check_output, explained_if_full, write_run
from llm_forget.stop import Measurement, StopRule, Verdict
from llm_forget.trainer import Objective, PairDataset, UnlearningTrainer
from llm_forget.weights import frozen_copy, put, trainable_state

_NEVER_SEEN = 0.1  # forget target without a holdout set to measure: what unseen answers typically have


@dataclass
class MetricsLog(TrainerCallback):
    """Collects what the Trainer logs, a dictionary a step: numbers only, never text."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "train"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep one row of numbers."""
        self.rows.append({"phase": self.phase, "step": state.global_step, **(logs or {})})

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.rows[:] = state["rows"]

    def check(self, now: Measurement, verdict: Verdict) -> None:
        """Keep one measurement of the stop rule."""
        row = {"phase": "check", "step": now.step, "forget": now.forget, "retain": now.retain, "verdict": verdict.name}
        self.rows.append(row)


def build_method(recipe: UnlearnRecipe) -> Method:
    """The method that a recipe names, with its hyper-parameters checked."""
    given = dict(recipe.method)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError("method.name: is missing; for example method: {name: npo}")
    cls = find_class("llm_forget.methods", name, "forget_loss")
    method: Method = build(cls, given, f"method {name}")
    if recipe.adapter is None and hasattr(method, "finish"):
        raise RecipeError(f"method {name} works on an adapter; remove `adapter: null` from the recipe")
    return method


def build_retain(config: RetainConfig, method: Method) -> RetainTerm | None:
    """The retain term that a recipe names, or what the method brings."""
    name = method.default_retain if config.name == "default" else config.name
    if name is None:
        return None
    term: RetainTerm = build(find_class("llm_forget.retain", name, "retain_loss"), {}, f"retain term {name}")
    return term


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
    console = console or Console(stderr=True)
    check_launch()
    check_output(recipe.output_dir, recipe.overwrite)
    check_checkpoints(recipe.output_dir, resume=recipe.resume, overwrite=recipe.overwrite)
    method = build_method(recipe)
    retain = build_retain(recipe.retain, method)
    if retain is not None and recipe.data.retain is None:
        raise RecipeError("the retain term needs data.retain; add it, or set retain.name: null")
    check_arguments(recipe.train, recipe.seed)
    base = locate_model(recipe.model.name)
    if recipe.model.adapter is not None:
        check_adapter_fits(base, recipe.model.adapter)
    tokenizer = load_tokenizer(recipe.model)
    sets = prepare(recipe, tokenizer)
    for warning in sets.warnings:
        console.print(f"[yellow]note[/] {warning}")

    started = time.monotonic()
    set_seed(recipe.seed)  # of the adapter's first values; the Trainer seeds again, too late for them
    model, _ = load_model(recipe.model, trainable=recipe.adapter is None)
    if recipe.adapter is not None:
        model = add_adapter(model, recipe.adapter)
    if recipe.train.compile:
        compile_blocks(model)
    run = _Run(recipe, method, retain, sets, model, tokenizer.pad_token_id, console)
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
    # every process takes part where weights lie in shards
    state = trainable_state(model) if PartialState().num_processes > 1 else None
    if PartialState().is_main_process:
        with explained_if_full(recipe.output_dir):
            write_run(recipe, record, model, tokenizer, outcome.metrics, state)
        drop_checkpoints(recipe.output_dir)
    PartialState().wait_for_everyone()
    return record


@dataclass(frozen=True)
class _Outcome:
    reason: str
    before: Measurement
    after: Measurement
    steps: int
    details: dict[str, float]
    metrics: list[dict[str, Any]]


class _Run:
    """One run in memory: the model, what it is measured on, and the phases it goes through."""

    def __init__(
        self,
        recipe: UnlearnRecipe,
        method: Method,
        retain: RetainTerm | None,
        sets: UnlearnSets,
        model: nn.Module,
        pad_token_id: int,
        console: Console,
    ) -> None:
        self.recipe, self.method, self.retain, self.sets = recipe, method, retain, sets
        self.model, self.pad_token_id, self.console = model, pad_token_id, console
        self.gauge = Gauge(sets.forget[: recipe.stop.rows], sets.validation, pad_token_id)
        self.metrics = MetricsLog()
        self.before = self.gauge(model, 0)
        self.target = self._forget_target()
        kept = self.before.retain
        self.floor = None if kept is None else kept * recipe.stop.utility_floor
        self.steps = 0

    def _forget_target(self) -> float | None:
        wanted = self.recipe.stop.forget_target
        if wanted != "holdout":
            return wanted
        if not self.sets.holdout:
            return _NEVER_SEEN
        return float(self.gauge.probabilities(self.model, self.sets.holdout).mean())

    def execute(self) -> _Outcome:
        """Train, turn round if the method does, and measure."""
        self._say(self.before)
        checks = None
        if not self.method.towards:
            patience = self.recipe.stop.patience if self.retain is not None else 1
            rule = StopRule(self.target, self.floor, patience)
            checks = Checks(self.gauge, rule, self.recipe.stop.every, self._report)
            checks.begin(self.model, self.before)
        trainer = self._train(self._objective(), self._pairs(), "unlearning", checks)
        details: dict[str, float] = {}
        if checks is not None:
            reason = checks.settle(self.model, trainer.non_finite_at)
        else:
            reason = "trained towards the forget set"
            if trainer.non_finite_at is not None:
                raise RecipeError(
                    f"the gradient was not finite at step {trainer.non_finite_at}; lower train.learning_rate"
                )
        finish = getattr(self.method, "finish", None)
        if finish is not None:
            details = finish(_AdapterSession(self))
            reason = "adapter subtracted at strength {strength:.3g}".format(**details)
        after = self.gauge(self.model, self.steps)
        self._say(after)
        return _Outcome(reason, self.before, after, self.steps, details, self.metrics.rows)

    def _objective(self) -> Objective:
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

    def _pairs(self) -> list[tuple[int, int | None]]:
        train = self.recipe.train
        kept = self.sets.retain if self.retain is not None else []
        return schedule(
            _lengths(self.sets.forget),
            _lengths(kept),
            batch=train.batch_size * train.gradient_accumulation * PartialState().num_processes,
            epochs=train.epochs,
            seed=self.recipe.seed,
        )

    def _train(
        self,
        objective: Objective,
        pairs: Sequence[tuple[int, int | None]],
        label: str,
        checks: Checks | None = None,
        learning_rate: float | None = None,
    ) -> UnlearningTrainer:
        bar = ProgressBar(self.console, f"{self.recipe.method['name']}: {label}")
        self._bar = bar
        needs_logits = any(
            part is not None and part.needs.reference_logits for part in (objective.method, objective.retain)
        )
        method = objective.method
        trainer = UnlearningTrainer(
            self.model,
            unlearning_arguments(
                self.recipe.train,
                self.recipe.seed,
                self.recipe.adapter is not None,
                learning_rate,
                autocast=held_in_bf16(self.model),
            ),
            PairDataset(self.sets.forget, self.sets.retain, pairs),
            objective,
            pad_token_id=self.pad_token_id,
            reference_logps=self._reference_logps() if method is not None and method.needs.reference_logps else None,
            reference_model=frozen_copy(self.model) if needs_logits and self.recipe.adapter is None else None,
            callbacks=[bar, self.metrics, *([checks] if checks else [])],
        )
        if objective.method is not None:
            trainer.saving = self._saving()
            if not self.recipe.train.compile:  # compiled blocks give their buffers back after one backward pass
                trainer.guard = CancellationGuard(self._note)
            trainer.stateful = {"metrics": self.metrics, "checks": checks, "method": method, "retain": objective.retain}
        trainer.resume_or_begin()
        self.steps += trainer.state.global_step
        return trainer

    def _saving(self) -> Saving:
        recipe, sets = self.recipe, self.sets
        rows = {"forget": sets.forget, "retain": sets.retain, "validation": sets.validation, "holdout": sets.holdout}
        return Saving(
            folder=checkpoint_folder(recipe.output_dir),
            identity=run_identity(recipe, rows, self.before),
            every=recipe.train.save_steps,
            keep=recipe.train.keep_checkpoints,
            at_end=hasattr(self.method, "finish"),
            resume=recipe.resume,
            say=self._note,
        )

    def _note(self, text: str) -> None:
        if PartialState().is_main_process:
            self.console.print(f"[yellow]note[/] {text}", highlight=False, soft_wrap=True)

    def _reference_logps(self) -> Tensor:
        """The reference is the model as it is before the first step: one pass over the forget set, and no second copy."""
        return answer_logps(self.model, self.sets.forget, self.pad_token_id)[0]

    def _report(self, now: Measurement, verdict: Verdict) -> None:
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


class _AdapterSession:
    """What a method's ``finish`` sees of the run (``methods.adapter_subtraction.Session``)."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.target, self.floor = run.target, run.floor
        self._trained = {name: value for name, value in trainable_state(run.model).items() if "lora_B" in name}

    def set_strength(self, strength: float) -> None:
        """B ← −strength · B of the trained adapter, in fp32."""
        for name, value in self._run.model.named_parameters():
            if name in self._trained:
                put(value, self._trained[name] * -strength)

    def measure(self) -> Measurement:
        """Measure both samples and show the result."""
        now = self._run.gauge(self._run.model, self._run.steps)
        self._run._report(now, Verdict.GO_ON)
        return now

    def heal(self, steps: int, learning_rate: float | None) -> None:
        """Train on retain rows alone, for so many steps."""
        from llm_forget.retain.nll import NLL

        run = self._run
        train = run.recipe.train
        batch = train.batch_size * train.gradient_accumulation * PartialState().num_processes
        kept = _lengths(run.sets.retain)
        # the forget half of a pair is not looked at here, so the shortest row stands in for it
        shortest = min(range(len(run.sets.forget)), key=_lengths(run.sets.forget).__getitem__)
        order = schedule(kept, [], batch=batch, epochs=-(-steps * batch // len(kept)), seed=run.recipe.seed + 1)
        pairs = [(shortest, index) for index, _ in order[: steps * batch]]
        run.metrics.phase = "heal"
        run._train(Objective(method=None, retain=NLL()), pairs, "healing", learning_rate=learning_rate)


def _lengths(rows: Sequence[Encoded]) -> list[int]:
    return [len(row.input_ids) for row in rows]
