"""Check how the processes were launched, and reject a launch that would silently compute something else."""

from __future__ import annotations

import os

import torch

from llm_forget.errors import LaunchError

_TWO_ON_CPU = (
    "ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --multi_gpu --num_machines 1 --num_processes 2 "
    "--mixed_precision no --dynamo_backend no SCRIPT --config RECIPE"
)


def check_launch() -> None:
    """Start the process group if there is one, and check that all processes have joined it.

    Raises:
        LaunchError: several processes were requested but only one runs, or several run without a common process group, or a
            sharded configuration would silently become plain data parallelism on a CPU.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # Without this, processes started by torchrun or --multi_gpu on a CPU do not join a process group.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # If several processes were requested but the launcher started only one, it sets MASTER_ADDR but not RANK.
    lonely = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ
    under_mpi = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"))
    if on_cpu and lonely and not under_mpi:
        raise LaunchError(
            "several processes were requested, but this launcher starts only one on a CPU (as --cpu and MULTI_CPU do). "
            f"For two processes:\n  {_TWO_ON_CPU}\nFor one process: accelerate launch --num_processes 1 …"
        )
    if on_cpu:
        for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
            if os.environ.get(variable, "false").lower() == "true":
                raise LaunchError(
                    f"{name} through accelerate does not run on a CPU (it silently becomes plain data parallelism); "
                    f"use a GPU, or:\n  {_TWO_ON_CPU}"
                )
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu)
    if state.num_processes != asked:
        raise LaunchError(
            f"{asked} processes were started, but this process sees {state.num_processes}: they would train separately and write "
            f"to the same folder. Start them with:\n  {_TWO_ON_CPU}"
        )


def is_sharded() -> bool:
    """Whether this launch distributes each weight over the processes."""
    from accelerate import PartialState

    return PartialState().distributed_type.name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
