"""Libraries are imported without work for parts that a run does not use, and these parts still work when they are used."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from llm_forget.utils.quick_imports import _late, importing

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


TRAINER = """
import json, sys
from llm_forget.cli.entry import quiet_libraries
quiet_libraries()
import torch
from llm_forget.methods.grad_ascent import GradAscent
from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.arguments import unlearning_arguments
from llm_forget.train.batches import PairDataset
from llm_forget.train.objective import Objective
from llm_forget.train.trainer import UnlearningTrainer
rows = [Encoded(f"f{row}", tuple(range(3 + row, 9 + row)), 3) for row in range(4)]
model = add_adapter(tiny_model(tiny_tokenizer(), hidden=32), AdapterConfig(rank=4))
data = PairDataset(rows, [], [(row, None) for row in range(4)])
arguments = unlearning_arguments(TrainConfig(batch_size=2), 0, True)
trainer = UnlearningTrainer(model, arguments, data, Objective(GradAscent(), None), pad_token_id=0)
trainer.train()
steps, early = trainer.state.global_step, {"pandas", "pyarrow"} & set(sys.modules)
import datasets
print(json.dumps([steps, sorted(early), datasets.Dataset.from_dict({"a": [1, 2]})["a"][1], "pandas" in sys.modules]))
"""


@pytest.mark.slow
def test_a_run_trains_without_datasets_which_still_work() -> None:
    pytest.importorskip("datasets")
    done = subprocess.run([sys.executable, "-c", TRAINER], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [2, [], 2, True]


def test_imports_are_without_garbage_collection_and_later_code_with_it() -> None:
    frozen, kept = gc.get_freeze_count(), [[]]
    with importing():
        during = gc.isenabled()
        kept.append([])
    assert not during
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


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
