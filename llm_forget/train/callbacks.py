"""Trainer callbacks: progress bar, metrics log, and early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback

from llm_forget.model.head import below_wrapper
from llm_forget.model.measure import SampleMeter
from llm_forget.model.weights import restore_trainable, trainable_state
from llm_forget.stop import Measurement, StopRule, Verdict
from llm_forget.train.trackers import Trackers
from llm_forget.utils.progress import ProgressFile
from llm_forget.utils.terminal import clean, say
from llm_forget.wrappers import Wrapper

_WIDE = 120  # columns of a terminal in which the bar has its full width and label
_LINES = 4  # progress lines per training phase if there is no terminal


def note(console: Console, text: str) -> None:
    """Print a note for the user, on the main process only."""
    if PartialState().is_main_process:
        say(console, text, label="note")


def not_known_before(rule: StopRule) -> str:
    """The statement that there was nothing to forget, for a rule whose first state is at the forget target."""
    return (
        f"the forget set was not known before: its probability was {rule.history[0].forget:.3g} before the first step, at or "
        f"below the forget target of {rule.target:.3g}, so there was nothing to forget and nothing is claimed"
    )


@dataclass
class MetricsLog(TrainerCallback):
    """Collects the Trainer's logs, one dictionary per step: numbers only, never text."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "train"
    # Every row is also sent to these.
    trackers: Trackers | None = None
    progress: ProgressFile = field(default_factory=ProgressFile)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Add one row of numbers."""
        self.add({"phase": self.phase, "step": state.global_step, **(logs or {})})

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and send it to the trackers."""
        self.rows.append(row)
        self.progress.add(row)
        if self.trackers is not None:
            self.trackers.row(row)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.rows[:] = state["rows"]
        self.progress.restart(self.rows)

    def check(self, now: Measurement, verdict: Verdict) -> None:
        """Add one measurement of the stop rule."""
        numbers = {"forget": now.forget, "retain": now.retain}
        numbers |= {} if now.neighbour is None else {"neighbour": now.neighbour}
        self.add({"phase": "check", "step": now.step, **numbers, "verdict": verdict.name})


class ProgressBar(TrainerCallback):
    """A progress bar on the main process: a rich bar in a terminal, a few lines in a log.

    Args:
        console: the console of the bar.
        label: the text before the bar.
    """

    def __init__(self, console: Console, label: str) -> None:
        self.console, self.label, self.note = console, clean(label), ""
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar."""
        if not state.is_world_process_zero:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None if self.console.width < _WIDE else 24),  # None: the bar shrinks, not the text
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar.start()
        self._started = time.monotonic()
        narrow = self.console.width < _WIDE
        shown = self.label.rpartition(": ")[2] if narrow else self.label
        self._task = self._bar.add_task(shown, total=state.max_steps, note=self.note)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar; without a terminal, print a few lines in total."""
        if self._bar is None:
            return
        self._bar.update(self._task, completed=state.global_step, note=self.note)
        if not self.console.is_terminal and state.global_step % max(1, state.max_steps // _LINES) == 0:
            spent = time.monotonic() - self._started
            left = spent / state.global_step * (state.max_steps - state.global_step)
            self._line(f"step {state.global_step} of {state.max_steps}, {spent:.0f} s, about {left:.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.update(self._task, note=self.note)
            self._bar.stop()
            self._bar = None

    def say(self, note: str, short: str) -> None:
        """Show the newest measurement next to the bar, in short, or as a line if there is no terminal."""
        self.note = short
        if not self.console.is_terminal:
            self._line(note)

    def _line(self, text: str) -> None:
        say(self.console, f"{self.label}: {text}")


@dataclass
class AfterStep(TrainerCallback):
    """Lets the wrappers change the weights after each step, before they are measured or saved."""

    wrappers: Sequence[Wrapper]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Call each wrapper."""
        for wrapper in self.wrappers:
            wrapper.after_step(below_wrapper(model))


class StopCallback(TrainerCallback):
    """Early stopping: measures the model every few steps, keeps the best state, and applies the stop rule.

    Args:
        meter: measures the model.
        rule: judges each measurement.
        every: optimizer steps between measurements.
        report: called with each measurement and its verdict.
        keeps: whether a retain term or the method itself works for the rows to keep.
    """

    def __init__(
        self,
        meter: SampleMeter,
        rule: StopRule,
        every: int,
        report: Callable[[Measurement, Verdict], None] = lambda *_: None,
        *,
        keeps: bool = True,
    ) -> None:
        self.meter, self.rule, self.every, self.report, self.keeps = meter, rule, every, report, keeps
        self.best_state: dict[str, Tensor] | None = None
        self.ended_by: Verdict | None = None

    def begin(self, model: Any, start: Measurement) -> None:
        """Keep the state before the first step, so that a run can always restore it."""
        self.rule.judge(start)
        self.best_state = trainable_state(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure every few steps, and after the last one."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        unwrapped = below_wrapper(model)
        now = self.meter(unwrapped, state.global_step)
        verdict = self._judge(unwrapped, now)
        self.report(now, verdict)
        control.should_training_stop |= self.ended_by is not None

    def judge(self, model: Any, now: Measurement) -> bool:
        """Judge a measurement from another caller. Returns whether the run should end."""
        self._judge(model, now)
        return self.ended_by is not None

    def _judge(self, model: Any, now: Measurement) -> Verdict:
        verdict = self.rule.judge(now)
        if verdict in (Verdict.KEEP, Verdict.REACHED):
            self.best_state = trainable_state(model)
        if verdict in (Verdict.REACHED, Verdict.BROKEN):
            self.ended_by = verdict
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule and the best weights so far, for a checkpoint."""
        ended_by = None if self.ended_by is None else self.ended_by.name
        return {"rule": self.rule.state_dict(), "best_state": self.best_state, "ended_by": ended_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.rule.load_state_dict(state["rule"])
        self.best_state = state["best_state"]
        self.ended_by = None if state["ended_by"] is None else Verdict[state["ended_by"]]

    def settle(self, model: Any, non_finite_at: int | None) -> str:
        """Restore the best state. Returns a sentence with the reason for the end of the run and the kept state."""
        if self.best_state is None or self.rule.best is None:
            raise RuntimeError("settle() before begin()")
        if self.ended_by is not Verdict.REACHED:
            restore_trainable(model, self.best_state)
            end = self._fell_short(self.rule.best, non_finite_at)
        elif self.rule.known_before is False:
            end = f"training stopped at step {self.rule.best.step}"
        else:
            end = f"forget target reached at step {self.rule.best.step}"
        return f"{not_known_before(self.rule)}; {end}" if self.rule.known_before is False else end

    def _fell_short(self, best: Measurement, non_finite_at: int | None) -> str:
        """Why the run ended without reaching the target, and the kept state."""
        why = "the last step was reached"
        if non_finite_at is not None:
            why = f"the gradient was not finite at step {non_finite_at} (a lower learning rate helps)"
        elif self.ended_by is Verdict.BROKEN:
            checks = "1 check" if self.rule.patience == 1 else f"{self.rule.patience} checks"
            why = f"the utility floor was broken and did not recover over {checks}"
        hint = self._passed_over()
        if best.step == 0:
            return f"{why}; no state above the floor had forgotten more than the start, so nothing is changed{hint}"
        target = "" if self.rule.target is None else f", target {self.rule.target:.3f}"
        kept = f"step {best.step}, the best above the floor (forget {best.forget:.3f}{target})"
        return f"{why}; kept {kept}{hint}"

    def _passed_over(self) -> str:
        """A hint about a state below the floor that had forgotten more, and how to reach it; empty if there is none."""
        beyond = self.rule.passed_over()
        if beyond is None:
            return ""
        which, kept, floor, key = "retain", beyond.retain, self.rule.floor, "utility_floor"
        if floor is None or (kept is not None and kept >= floor):
            which, kept, floor, key = "neighbours'", beyond.neighbour, self.rule.neighbour_floor, "neighbour_floor"
        more = "a larger retain.weight" if self.keeps else "a retain term (retain.name: kl)"
        return (
            f". Step {beyond.step} had forgotten more ({beyond.forget:.3f}), but its {which} probability ({kept:.3f}) "
            f"is below the floor ({floor:.3f}). Try {more}, more train.epochs or a lower stop.{key}"
        )
