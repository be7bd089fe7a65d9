"""Batches of like length, their share among processes, and the mode in which a model is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def length_batches(lengths: Sequence[int], batch_tokens: int, batch_rows: int | None = None) -> list[list[int]]:
    """Indices of rows in batches of like length, the longest first, so that what does not fit in memory fails at once.

    Args:
        lengths: tokens of each row.
        batch_tokens: at most so many in a batch with its padding, except for a single row that is longer.
        batch_rows: at most so many rows in a batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    while order:
        take = max(1, batch_tokens // max(lengths[order[0]], 1))
        take = take if batch_rows is None else min(take, batch_rows)
        batches.append(order[:take])
        order = order[take:]
    return batches


def share_of(batches: Sequence[list[int]], accelerator: Any) -> Iterator[tuple[list[int], bool]]:
    """This process's batches, and whether their results count: the last round is filled up with repeats that do not."""
    processes, own = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    for first in range(0, len(batches), processes):
        place = first + own
        yield batches[min(place, len(batches) - 1)], place < len(batches)


def sum_over_processes(values: npt.NDArray[Any], accelerator: Any) -> npt.NDArray[Any]:
    """Add up arrays that hold zeros wherever another process has the value; NaN stays NaN."""
    if accelerator is None or accelerator.num_processes == 1:
        return values
    # Tensors rather than objects, which would travel as pickles; fp32 holds every score exactly, as they were computed
    # in it.
    kind = torch.float32 if values.dtype.kind == "f" else torch.int64
    summed = accelerator.reduce(torch.as_tensor(values, dtype=kind, device=accelerator.device), reduction="sum")
    return np.asarray(summed.cpu().numpy(), dtype=values.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
