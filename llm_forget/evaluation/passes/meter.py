"""Progress of an evaluation: bars in a terminal, one line per part in a log, and the duration of each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm_forget.utils.terminal import clean, say


class Meter:
    """Progress and times of an evaluation.

    Args:
        console: a ``rich.console.Console``; None shows nothing.
        processes: number of processes that share the work; a bar counts this process's share.
    """

    def __init__(self, console: Any = None, processes: int = 1) -> None:
        self.console, self.processes = console, processes
        self.seconds: dict[str, float] = {}
        self._part = ""

    def note(self, text: str) -> None:
        """Print a note for the user."""
        if self.console is not None:
            say(self.console, text, label="note")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Context for one part: it names the part in bars and measures its duration."""
        if self.console is not None:
            say(self.console, f"measuring {name} ...")
        self._part = name
        start = perf_counter()
        yield
        self.seconds[name] = round(perf_counter() - start, 2)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar until the context ends.

        Args:
            what: the label of the bar.
            total: number of items over all processes.

        Yields:
            A function to call with the number of finished items.
        """
        if self.console is None or not self.console.is_terminal:
            yield lambda done: None
            return
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(clean(f"{self._part}: {what}"), total=-(-total // self.processes))
            yield lambda done: progress.advance(task, done)
