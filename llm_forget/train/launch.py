"""Check how the processes were launched. A launch that would silently compute something else is refused."""

from __future__ import annotations

import os

import torch

from llm_forget.errors import LaunchError

_TWO_ON_CPU = (
    "ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --multi_gpu --num_machines 1 --num_processes 2 "
    "--mixed_precision no --dynamo_backend no SCRIPT --config RECIPE"
)


def check_launch() -> None:
    """Start the process group if there is one, and check that the processes know of each other.

    Raises:
        LaunchError: several processes were asked for and one runs, or several run and do not talk to each other, or a
            sharded configuration would silently become plain data parallelism on a CPU.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # Without this, processes started by torchrun or --multi_gpu on a CPU do not join a group.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # The launcher that starts one process on a CPU sets the address of a group (it was asked for several processes) and
    # no rank (it started one).
    lonely = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ
    under_mpi = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"))
    if on_cpu and lonely and not under_mpi:
        raise LaunchError(
            "several processes were asked for, but this launcher starts one on a CPU (--cpu and MULTI_CPU do that). "
            f"For two real ones:\n  {_TWO_ON_CPU}\nFor one: accelerate launch --num_processes 1 …"
        )
    if on_cpu:
        for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
            if os.environ.get(variable, "false").lower() == "true":
                raise LaunchError(
                    f"{name} through accelerate does not run on a CPU (it becomes plain data parallelism without a word); "
                    f"use a GPU, or:\n  {_TWO_ON_CPU}"
                )
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu)
    if state.num_processes != asked:
        raise LaunchError(
            f"{asked} processes were started, but this one sees {state.num_processes}: they would train separately and write "
            f"into one folder. Start them with:\n  {_TWO_ON_CPU}"
        )
