"""Large blocks that were freed do not stay with the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_forget.utils import heap

# Freeing a block of 31 MiB makes the library keep all smaller ones. Blocks of 20 MiB then lie in the heap, below a small one that
# stays.
_GAPS = """
import ctypes, os, sys
from llm_forget.utils.heap import return_large_blocks

done = {call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
libc.free(libc.malloc(31 << 20))
before = resident()
blocks = [libc.malloc(20 << 20) for _ in range(8)]
for block in blocks:
    ctypes.memset(block, 1, 20 << 20)
libc.malloc(4 << 20)
for block in blocks:
    libc.free(block)
print(done, (resident() - before) >> 20)
"""


def _kept(call: str, **environment: str) -> tuple[str, int]:
    """What the call returned, and the MiB that stay with a process after 160 were freed."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", _GAPS.format(call=call)],
        env=values | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return found[0], int(found[1])


@pytest.mark.skipif(not heap._has_glibc() or not Path("/proc/self/statm").is_file(), reason="needs Linux with glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    assert _kept("None")[1] > 100
    told, kept = _kept("return_large_blocks()")
    assert told == "True"
    assert kept < 10


@pytest.mark.skipif(not heap._has_glibc(), reason="needs glibc")
def test_a_threshold_from_the_environment_stays() -> None:
    told, kept = _kept("return_large_blocks()", MALLOC_MMAP_THRESHOLD_="33000000")
    assert told == "False"
    assert kept > 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(heap.os, "confstr", unknown)
    assert not heap.return_large_blocks()
