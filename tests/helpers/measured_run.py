"""Prints the bytes that a run added to this process at its peak: python measured_run.py WARM_RECIPE.json RECIPE.json.

A small run comes first, so that what libraries load and keep is there before counting begins. The parent sets
MALLOC_MMAP_THRESHOLD_, which makes the C library give every large block back at once: then the resident memory is what is alive.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import sys
from pathlib import Path

from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


def resident(name: str) -> int:
    """VmRSS (now) or VmHWM (the highest since the last reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Warm up, then measure."""
    for path in sys.argv[1:]:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
        before = resident("VmRSS")
        unlearn(build(UnlearnRecipe, json.loads(Path(path).read_text()), path), Console(file=io.StringIO()))
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
