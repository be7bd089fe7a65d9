"""How far an evaluation is: bars with time left in a terminal, a line a part in a log; and how long each part took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """Progress and times of an evaluation.

    Args:
        console: a ``rich.console.Console``; None shows nothing.
        processes: how many share the work: a bar counts what this one does.
    """

    def __init__(self, console: Any = None, processes: int = 1) -> None:
        self.console, self.processes = console, processes
        self.seconds: dict[str, float] = {}
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, bars are of this part, and its seconds are taken."""
        if self.console is not None:
            self.console.print(f"measuring {name} ...", highlight=False)
        self._part = name
        start = perf_counter()
        yield
        self.seconds[name] = round(perf_counter() - start, 2)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar, which is gone when it is done.

        Args:
            what: what is being done.
            total: how many there are, for all processes together.

        Yields:
            What to call with the number that was done.
        """
        if self.console is None or not self.console.is_terminal:
            yield lambda done: None
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"{self._part}: {what}", total=-(-total // self.processes))
            yield lambda done: progress.advance(task, done)
