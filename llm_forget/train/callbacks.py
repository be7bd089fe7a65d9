"""Progress that a person can follow: a bar with time left in a terminal, a line a check in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from llm_forget.stop import Measurement, Verdict
from llm_forget.train.trackers import Trackers

_LINES = 4  # lines a training phase writes where there is no terminal


def note(console: Console, text: str) -> None:
    """What the user should know, once however many processes there are."""
    if PartialState().is_main_process:
        console.print(f"[yellow]note[/] {text}", highlight=False, soft_wrap=True)


@dataclass
class MetricsLog(TrainerCallback):
    """Collects what the Trainer logs, a dictionary a step: numbers only, never text."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "train"
    # Sent every row too.
    trackers: Trackers | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep one row of numbers."""
        self.add({"phase": self.phase, "step": state.global_step, **(logs or {})})

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and send it to the trackers."""
        self.rows.append(row)
        if self.trackers is not None:
            self.trackers.row(row)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.rows[:] = state["rows"]

    def check(self, now: Measurement, verdict: Verdict) -> None:
        """Keep one measurement of the stop rule."""
        numbers = {"forget": now.forget, "retain": now.retain}
        self.add({"phase": "check", "step": now.step, **numbers, "verdict": verdict.name})


class ProgressBar(TrainerCallback):
    """A rich progress bar for the Trainer; shows on the main process only.

    Args:
        console: where to draw.
        label: what is being done.
    """

    def __init__(self, console: Console, label: str) -> None:
        self.console, self.label, self.note = console, label, ""
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar."""
        if not state.is_world_process_zero:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar.start()
        self._started = time.monotonic()
        self._task = self._bar.add_task(self.label, total=state.max_steps, note=self.note)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar; in a log, say where we are a few times."""
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
            self._bar.stop()
            self._bar = None

    def say(self, note: str) -> None:
        """Show the newest measurement: beside the bar, or as a line where there is no terminal."""
        self.note = note
        if not self.console.is_terminal:
            self._line(note)

    def _line(self, text: str) -> None:
        self.console.print(f"{self.label}: {text}", highlight=False, soft_wrap=True)
