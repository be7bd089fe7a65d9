"""Run a recipe in forked children and kill them. Libraries are imported once, so that ten kills take seconds, not minutes."""

from __future__ import annotations

import io
import os
import random
import threading
import time
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from rich.console import Console

import llm_forget.train.callbacks
import llm_forget.train.run
from llm_forget.cli.entry import run_entry
from llm_forget.config import UnlearnRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


def child(values: dict[str, Any], chance: random.Random | None, number: int, seen: int) -> None:
    """Run the recipe; after a few steps, send the signal at a random moment of the next one or two steps."""
    recipe = build(UnlearnRecipe, values, "recipe")
    left = chance.randint(1, 3) if chance else -1

    class Bar(llm_forget.train.callbacks.ProgressBar):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            nonlocal left
            os.write(seen, f"{state.global_step} ".encode())
            left -= 1
            now = time.monotonic()
            if left == 0 and chance:
                delay = chance.uniform(0.0, 1.5) * (now - self.last)
                timer = threading.Timer(delay, lambda: os.kill(os.getpid(), number))
                timer.daemon = True
                timer.start()
            self.last = now

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            pass

    llm_forget.train.run.ProgressBar = Bar  # type: ignore[misc]
    run_entry(lambda _: unlearn(recipe, Console(file=io.StringIO())) and None, [])


def killed_runs(
    values: dict[str, Any], kills: int, errors: Path, number: Signals = SIGKILL
) -> list[tuple[int, list[int]]]:
    """Kill and resume repeatedly, and let the last child finish.

    Args:
        values: the recipe; each child resumes the run of the last one.
        kills: number of children that receive the signal, at a random moment of one of their first steps.
        errors: a file for what the children write to standard error.
        number: the signal.

    Returns:
        Exit status and steps seen of each child.
    """
    report = []
    for turn in range(kills + 1):
        chance = random.Random(f"7 {turn}") if turn < kills else None
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            status = 1
            with errors.open("a") as shown, redirect_stderr(shown):
                try:
                    child({**values, "resume": True}, chance, number, write)
                    status = 0
                except SystemExit as stop:
                    status = int(stop.code or 0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    shown.flush()
                    os._exit(status)
        os.close(write)
        with os.fdopen(read) as stream:
            steps = [int(word) for word in stream.read().split()]
        report.append((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), steps))
    return report
