"""The number of this process in a launch of several, also before a process group exists."""

from __future__ import annotations

import os
import sys
from typing import Any

# torchrun and accelerate, then the launchers of Open MPI, MPICH and MVAPICH.
_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def process_rank() -> int:
    """The number of this process, 0 for the first or only one. It imports no torch."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return next((int(os.environ[name]) for name in _VARIABLES if os.environ.get(name, "").isdigit()), 0)
