"""Run commands of ``llm-forget`` as processes of their own, several at once, each as soon as what it needs is there.

A small model does not keep all cores busy, so that two processes with half of the threads each use a CPU better than one.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from llm_forget.errors import UserError
from llm_forget.memory.machine import Machine
from llm_forget.utils.cores import cores
from llm_forget.utils.files import identity
from llm_forget.utils.terminal import clean, say

_LAST = 5  # lines of a failed step that its error repeats
_PATIENCE = 10.0  # seconds that a process has to end before it is killed
_POLL = 0.5


@dataclass(frozen=True)
class Step:
    """A command that makes one file.

    Attributes:
        name: its name, at the beginning of its lines.
        command: arguments of ``llm-forget``.
        makes: the file. The step has succeeded if it wrote the file: a run that did not reach its goal has status 1.
        needs: files that other steps make.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    needs: tuple[Path, ...] = ()


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[str]
    before: tuple[int, int] | None
    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)


def at_once(machine: Machine, memory: float) -> int:
    """Two steps at once if this machine has two cores and memory for both; one on a GPU.

    Args:
        machine: the machine.
        memory: bytes that one step needs.
    """
    return 1 if machine.on_card or cores() < 2 or machine.free < 2 * memory else 2


def run_steps(steps: Sequence[Step], console: Console, *, most: int, threads: int | None = None) -> None:
    """Run all steps, in their order where nothing else decides. Their progress appears line by line, after their names.

    Args:
        steps: the steps. What a step needs is made by another one.
        console: for the progress.
        most: processes at once.
        threads: threads of each process; None leaves it to torch.

    Raises:
        UserError: a step did not make its file, or none of the rest can begin.
    """
    left, said = list(steps), queue.Queue[tuple[_Running, str | None]]()
    made: set[Path] = set()
    with _ended_with_us() as running:
        while left or running:
            for step in [one for one in left if made.issuperset(one.needs)][: most - len(running)]:
                left.remove(step)
                running.append(_start(step, said, threads))
                say(console, "begins", label=f"{step.name}:", label_style="bold")
            if not running:
                raise UserError(f"{left[0].name} cannot begin: nothing makes {', '.join(map(str, left[0].needs))}")
            with suppress(queue.Empty):  # a timeout, so that Ctrl-C is noticed
                one, line = said.get(timeout=_POLL)
                if line is None:
                    running.remove(one)
                    made.add(_finished(one, console))
                elif line:
                    one.lines.append(line)
                    say(console, line, label=f"{one.step.name}:", label_style="bold")


def _start(step: Step, said: queue.Queue[tuple[_Running, str | None]], threads: int | None) -> _Running:
    before = identity(step.makes)
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_forget.cli", *step.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # all numbers of an evaluation; its file has them too
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **chosen},
    )
    one = _Running(step, process, before)
    threading.Thread(target=_listen, args=(one, said), daemon=True).start()
    return one


def _listen(one: _Running, said: queue.Queue[tuple[_Running, str | None]]) -> None:
    for line in one.process.stderr or ():
        said.put((one, line.rstrip()))
    said.put((one, None))


def _finished(one: _Running, console: Console) -> Path:
    """The file that a step has made."""
    status, file = one.process.wait(), one.step.makes
    if identity(file) == one.before:
        last = "\n".join(clean(text) for text in one.lines[-_LAST:])
        raise UserError(f"{one.step.name} ended with status {status} and did not write {file}:\n{last}")
    say(console, f"done in {time.monotonic() - one.began:.0f} s", label=f"{one.step.name}:", label_style="bold")
    return file


@contextmanager
def _ended_with_us() -> Iterator[list[_Running]]:
    """A list of processes that end when the context does."""
    running: list[_Running] = []
    try:
        yield running
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            try:
                one.process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
