"""What this machine has: the device that a run would use, its free memory, and its speed in products of matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from llm_forget.utils.cores import cores

_TRIALS, _ROWS, _WIDTH = 3, 256, 1024


@dataclass(frozen=True)
class Machine:
    """The device of a run.

    Attributes:
        name: in words.
        on_card: whether it is a GPU.
        free: bytes that a process may still take.
    """

    name: str
    on_card: bool
    free: float


def this_machine() -> Machine:
    """The device that a run on this machine would use."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Machine(torch.cuda.get_device_name(), True, float(free))
    count = cores()
    return Machine(f"CPU, {count} core{'s' if count > 1 else ''}", False, _free())


def _free() -> float:
    """Free memory of the machine, or what its control group or the process's own limit leaves of it."""
    process = psutil.Process()
    found = [float(psutil.virtual_memory().available)]
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        found.append(limit - used)
    if hasattr(psutil, "RLIMIT_AS"):
        most = process.rlimit(psutil.RLIMIT_AS)[0]
        if most >= 0:
            found.append(float(most - process.memory_info().vms))
    return max(min(found), 0.0)


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # not in such a group, or "max"
        return None


def speed(machine: Machine, dtype: torch.dtype) -> float:
    """Floating point operations per second of a matrix product of a usual size; it is measured in about a tenth of a second."""
    device = "cuda" if machine.on_card else "cpu"
    left = torch.randn(_ROWS, _WIDTH, device=device).to(dtype)
    right = torch.randn(_WIDTH, 4 * _WIDTH, device=device).to(dtype)
    best = float("inf")
    for _ in range(_TRIALS):
        began = time.perf_counter()
        (left @ right).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2.0 * _ROWS * _WIDTH * 4 * _WIDTH / best
