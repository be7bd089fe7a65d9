"""What a job file starts: a training on some machines, or the workers of a search."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_forget.errors import UserError

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")  # what Kubernetes allows, which is the strictest
MODULE = "llm_forget.cli"
PORT = 29500


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        config: the recipe of a training; None for a search.
        search: the folder of a search, on a file system that all machines see; None for a training.
        name: its name.
        machines: number of machines. A search has one worker on each.
        gpus: GPUs of each machine; 0 for its CPU.
        gpu: their kind, for tools that rent machines, for example H100.
        image: container image with llm-forget, for Kubernetes.
        minutes: time limit.
    """

    config: str | None = None
    search: str | None = None
    name: str = "forget"
    machines: int = 1
    gpus: int = 1
    gpu: str = "A100"
    image: str = "REGISTRY/llm-forget:latest"
    minutes: int = 240

    def __post_init__(self) -> None:
        if (self.config is None) == (self.search is None):
            raise UserError("a job file is for a training or for a search; give one of --config and --search")
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"--name is {self.name!r}; use up to 42 small letters, digits and '-', beginning with a letter"
            )
        for what, value, least in (
            ("machines", self.machines, 1),
            ("gpus", self.gpus, 0),
            ("minutes", self.minutes, 1),
        ):
            if value < least:
                raise UserError(f"--{what} is {value}; give {least} or more")

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return self.config is not None

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``llm-forget``. A training resumes, and a search goes on, when the job is started again."""
        if self.config is not None:
            return ["unlearn", "--config", self.config, "--resume", "true"]
        return ["search", "--to", str(self.search), "--yes"]

    @property
    def processes(self) -> int:
        """Processes of each machine."""
        return max(1, self.gpus) if self.trains else 1
