"""Start workers: processes of this machine, or jobs of Slurm through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llm_forget.errors import UserError
from llm_forget.utils.extras import require_extra

ENGINES = ("local", "slurm", "slurm-local")


class Workers(Protocol):
    """Workers that were started."""

    def alive(self) -> int:
        """How many of them run, or wait to run."""

    def stop(self) -> None:
        """End them."""

    def problem(self) -> str:
        """The last lines that a worker that failed has written; empty if none failed."""


class Processes:
    """Processes of this machine, which end with this one's terminal.

    Args:
        commands: one for each.
        logs: folder for what they write.
        environment: further variables.
    """

    def __init__(self, commands: Sequence[Sequence[str]], logs: Path, environment: dict[str, str]) -> None:
        self._logs, self._running = [], []
        for place, command in enumerate(commands):
            log = logs / f"worker-{place}.log"
            with log.open("ab") as file:
                self._running.append(
                    subprocess.Popen(
                        command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
                    )
                )
            self._logs.append(log)

    def alive(self) -> int:
        """How many run."""
        return sum(one.poll() is None for one in self._running)

    def stop(self) -> None:
        """Ask them to end, and wait: they save their trials."""
        for one in self._running:
            if one.poll() is None:
                one.terminate()
        for one in self._running:
            one.wait()

    def problem(self) -> str:
        """The last lines of a worker that failed."""
        for one, log in zip(self._running, self._logs, strict=True):
            if one.poll() not in (None, 0, 1):
                return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
        return ""


class Jobs:
    """Jobs of submitit.

    Args:
        commands: one for each.
        logs: folder for submitit's files.
        environment: further variables.
        cluster: ``slurm``, or ``local`` for submitit's processes on this machine.
        options: of submitit, for example ``timeout_min`` or ``slurm_partition``.

    Raises:
        UserError: submitit or the cluster is not there, or does not know an option.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        logs: Path,
        environment: dict[str, str],
        cluster: str,
        options: dict[str, Any],
    ) -> None:
        require_extra("submitit", "--engine slurm", "slurm")
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=str(logs / "jobs"), cluster=cluster)
            executor.update_parameters(**{"timeout_min": 24 * 60, **options})
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise UserError(
                f"--engine slurm: {error}; check --engine_options, and that sbatch is on this machine"
            ) from error
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)  # jobs get the environment of the moment
        try:
            self._jobs = [executor.submit(submitit.helpers.CommandFunction(list(one))) for one in commands]
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def alive(self) -> int:
        """How many run or wait."""
        return sum(not one.done() for one in self._jobs)

    def stop(self) -> None:
        """Cancel those that are not done."""
        for one in self._jobs:
            if not one.done():
                one.cancel()

    def problem(self) -> str:
        """The last lines of a job that failed."""
        for one in self._jobs:
            if one.done() and (error := one.exception()) is not None:
                return "\n".join(str(error).strip().splitlines()[-3:])
        return ""


def start(
    engine: str, commands: Sequence[Sequence[str]], logs: Path, environment: dict[str, str], options: dict[str, Any]
) -> Workers:
    """Start a worker for each command.

    Args:
        engine: one of ``ENGINES``; ``slurm-local`` is submitit without a cluster.
        commands: arguments after ``llm-forget``.
        logs: folder for what they write.
        environment: further variables.
        options: of submitit.

    Raises:
        UserError: the engine is unknown or not there.
    """
    full = [[sys.executable, "-m", "llm_forget.cli", *one] for one in commands]
    if engine == "local":
        if options:
            raise UserError("--engine_options are for --engine slurm; leave them out")
        return Processes(full, logs, environment)
    if engine not in ENGINES:
        raise UserError(f"--engine is {engine}; give one of {', '.join(ENGINES)}")
    return Jobs(full, logs, environment, "local" if engine == "slurm-local" else "slurm", options)
