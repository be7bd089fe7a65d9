"""`llm-forget launch-file`: a job file for torchrun, Slurm, Ray, SkyPilot or Kubeflow Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo


def launch_file(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="torchrun, submitit, ray, skypilot or kubeflow")],
    to: Annotated[Path | None, typer.Argument(metavar="TO", help="file to write; default: standard output")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="recipe of a training")] = None,
    search: Annotated[str | None, typer.Option(metavar="DIR", help="folder of a search, for its workers")] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="name of the job")] = "forget",
    machines: Annotated[int, typer.Option(metavar="N", help="machines; a search has a worker on each")] = 1,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs of each machine; 0 for its CPU")] = 1,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="kind of GPU (SkyPilot)")] = "A100",
    image: Annotated[
        str, typer.Option(metavar="NAME", help="container image with llm-forget (Kubeflow)")
    ] = "REGISTRY/llm-forget:latest",
    minutes: Annotated[int, typer.Option(metavar="N", help="time limit (submitit, Kubeflow)")] = 240,
) -> None:
    """Write a job file for a launcher or scheduler.

    recipes/launching.md says which to take.

    \b
    Examples:
      llm-forget launch-file torchrun job.sh --config mine.yaml --gpus 8
      llm-forget launch-file skypilot job.yaml --search /shared/search --machines 4
    """
    from llm_forget.launching.files import KINDS, job_file
    from llm_forget.launching.job import Job
    from llm_forget.utils.files import write_text

    text = job_file(kind, Job(config, search, name, machines, gpus, gpu, image, minutes))
    if to is None:
        echo(text.rstrip("\n"))
        return
    if to.exists():
        raise UserError(f"{to} already exists; give another name")
    try:
        write_text(to, text.replace("FILE", str(to), 1))  # in its first lines, which say how to start it
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}; give another place") from error
    echo(to)
    echo(f"start it: {KINDS[kind].start.format(file=to, name=name)}")
