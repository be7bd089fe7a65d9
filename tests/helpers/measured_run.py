"""Print the peak memory that runs add to their process: python measured_run.py WARM.json RECIPE.json [WARM RECIPE ...].

Every pair runs in a fork, so that libraries are imported once; the output is a JSON list of bytes. A small run is first, so
that libraries have made their permanent allocations before the measurement. The parent sets MALLOC_MMAP_THRESHOLD_: the C
library then returns every large block at once, so that the resident memory is the memory in use.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401  (imported before the forks)
from rich.console import Console
from transformers.models.llama import LlamaForCausalLM  # noqa: F401

from llm_forget.config import UnlearnRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


def resident(name: str) -> int:
    """Return VmRSS (current) or VmHWM (the peak since the last reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def added(warm: str, recipe: str) -> int:
    """Return the bytes that the second of two runs added to this process at its peak."""
    for path in (warm, recipe):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = resident("VmRSS")
        unlearn(build(UnlearnRecipe, json.loads(Path(path).read_text()), path), Console(file=io.StringIO()))
    return resident("VmHWM") - before


def in_a_fork(warm: str, recipe: str) -> int:
    """Measure a pair in a child process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(write, str(added(warm, recipe)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as stream:
        found = stream.read()
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"{recipe} failed")
    return int(found)


def main() -> None:
    """Measure each pair."""
    gc.freeze()  # the children do not collect the imported objects
    paths = sys.argv[1:]
    print(json.dumps([in_a_fork(*pair) for pair in zip(paths[::2], paths[1::2], strict=True)]))


if __name__ == "__main__":
    main()
