"""bitsandbytes is imported without the compiler, and its fallback kernels are still compiled when they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_forget.utils.quick_imports import _late

IMPORT = """
import sys
from llm_forget.cli.entry import quiet_libraries
quiet_libraries()
quiet_libraries()
import torch
compiler = torch.compile
import bitsandbytes
assert torch.compile is compiler
assert bitsandbytes.nn.Linear4bit
print("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_importing_bitsandbytes_does_not_load_the_compiler() -> None:
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_function_is_compiled_once_at_its_first_call() -> None:
    calls = []

    def compiler(function, **options):
        calls.append(options)
        return lambda *args: ("compiled", function(*args))

    def double(value: int) -> int:
        return 2 * value

    plain, decorated = _late(compiler, double, dynamic=False), _late(compiler, dynamic=True)(double)
    assert calls == []
    assert plain(2) == plain(2) == decorated(2) == ("compiled", 4)
    assert calls == [{"dynamic": False}, {"dynamic": True}]
    assert plain.__name__ == "double"
