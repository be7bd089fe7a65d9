"""One trial in a process of its own: a run, measured, with a question to the worker at each rung."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import Interrupted, UserError
from llm_forget.stop import Measurement
from llm_forget.train.resume import checkpoint_folder
from llm_forget.train.run_folder import RESULT_NAME, writing_run
from llm_forget.train.shared import Shared
from llm_forget.train.unlearn import finished
from llm_forget.trials.slots import Result
from llm_forget.trials.yardstick import Yardstick
from llm_forget.utils.signals import Ended, ending_cleanly

RUNGS = (1 / 6, 1 / 3, 2 / 3)  # shares of the steps after which a trial is compared with the others
_PATIENCE = 20.0  # seconds for the process of a killed worker to let go of the run folder


@dataclass(frozen=True)
class Task:
    """What a process needs for its trial.

    Attributes:
        recipe: the trial's recipe.
        shared: what all trials have in common.
        yardstick: how they are measured.
        steps: optimizer steps of the recipe at most.
        pad: the padding token.
        threads: of this process; 0 for the usual number.
        log: file for progress.
    """

    recipe: UnlearnRecipe
    shared: Shared
    yardstick: Yardstick
    steps: int
    pad: int
    threads: int
    log: Path


class Pruned(Exception):
    """The worker ended the trial at a rung.

    Args:
        result: what was measured there.
    """

    def __init__(self, result: Result) -> None:
        super().__init__("pruned")
        self.result = result


def main(task: Task, worker: Connection) -> None:
    """Run a trial; the last message to the worker is ``("result", Result)`` or ``("interrupted", None)``."""
    _end_with_worker()
    if task.threads:
        torch.set_num_threads(task.threads)
    with task.log.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
        sys.stderr = log
        try:
            with ending_cleanly():
                message = ("result", _result(task, worker, Console(file=log, width=120)))
        except (Ended, Interrupted, KeyboardInterrupt):
            message = ("interrupted", None)  # type: ignore[assignment]
        worker.send(message)


def _result(task: Task, worker: Connection, console: Console) -> Result:
    try:
        return _run(task, worker, console)
    except Pruned as pruned:
        shutil.rmtree(checkpoint_folder(task.recipe.output_dir), ignore_errors=True)
        return pruned.result
    except UserError as error:
        return Result(failed=str(error))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        # messages of libraries may quote a row, so that only the kind is kept
        return Result(failed=f"{type(error).__name__}; see {task.log.name}")


def _run(task: Task, worker: Connection, console: Console) -> Result:
    rungs = Rungs(task, worker)
    recipe = task.recipe
    if (Path(recipe.output_dir) / RESULT_NAME).is_file():  # complete, but its worker was killed before it said so
        recipe = replace(recipe, overwrite=True, resume=False)
    began = time.monotonic()
    with _free_folder(recipe.output_dir):
        done = finished(recipe, console, lenient=True, shared=task.shared, watch=rungs)
    retain = done.record.after.retain
    result = task.yardstick.measure(done.model, task.shared.sets.forget, task.pad, retain=retain)
    result.details |= {"seconds": time.monotonic() - began, "steps": done.record.steps, "reached": done.record.reached}
    return result


def _free_folder(output_dir: str) -> Any:
    """``writing_run``, waiting a moment for a process that is ending."""
    until = time.monotonic() + _PATIENCE
    while True:
        held = writing_run(output_dir)
        try:
            held.__enter__()
        except UserError as error:
            if "is being written by" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.5)
            continue
        held.__exit__(None, None, None)
        return writing_run(output_dir)


class Rungs:
    """Measures a run at each rung, and asks the worker whether it goes on.

    Args:
        task: the trial.
        worker: where to ask.
    """

    def __init__(self, task: Task, worker: Connection) -> None:
        self._task, self._worker, self._left = task, worker, list(enumerate(RUNGS))
        self._way: list[tuple[float, float]] = []

    def __call__(self, model: Any, now: Measurement) -> None:
        """Called after every check of the stop rule."""
        steps = self._task.steps
        if not self._left or not self._left[0][1] * steps <= now.step < steps:
            return
        while self._left and self._left[0][1] * steps <= now.step:  # checks may be further apart than rungs
            rung, _ = self._left.pop(0)
        stick, rows = self._task.yardstick, self._task.shared.sets.forget
        result = stick.measure(model, rows, self._task.pad, retain=now.retain)
        self._way.append((now.step / steps, result.distance))
        self._worker.send(("rung", (rung, result.distance, result.harm)))
        if not self._worker.recv() or stick.hopeless(self._way, result.harm):
            result.details |= {"pruned_at": now.step, "steps": now.step}
            raise Pruned(result)


def _end_with_worker() -> None:
    """End this process as soon as its worker has ended, however it ended."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
