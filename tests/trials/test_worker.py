"""A worker's trial in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from llm_forget.trials.slots import Result
from llm_forget.trials.worker import InProcess


def summed(given: list[torch.Tensor], worker: Any) -> None:
    worker.send(("rung", (0, float(sum(given)), 0.0)))
    worker.send(("result", Result(distance=float(len(given)) if worker.recv() else -1.0)))


def test_a_process_gets_more_tensors_than_it_may_get_file_descriptors() -> None:
    asked = []
    result = InProcess(summed)([torch.ones(()) for _ in range(600)], lambda *rung: not asked.append(rung))
    assert (result, asked) == (Result(distance=600.0), [(0, 600.0, 0.0)])
