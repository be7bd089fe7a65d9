"""Batches of rows with similar length, their distribution over processes, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.experts import without_router_loss

BATCH_TOKENS = 2048  # fills the units of a core, and leaves room for what is kept of a batch


def length_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    batch_rows: int | None = None,
    *,
    answers: Sequence[int] | None = None,
    batch_answers: int | None = None,
) -> list[list[int]]:
    """Group row indices into batches of similar length, the longest first, so that out-of-memory errors come early.

    A row that alone exceeds a limit has a batch of its own.

    Args:
        lengths: tokens of each row.
        batch_tokens: most tokens per batch, including padding.
        batch_rows: most rows per batch; None for no limit.
        answers: answer tokens of each row; only with ``batch_answers``.
        batch_answers: most answer tokens per batch; None for no limit.
    """
    batches: list[list[int]] = []
    counted = 0
    for index in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        last = batches[-1] if batches else []
        own = 0 if answers is None else answers[index]
        full = (
            not last
            or (len(last) + 1) * max(lengths[last[0]], 1) > batch_tokens
            or (batch_rows is not None and len(last) >= batch_rows)
            or (batch_answers is not None and counted + own > batch_answers)
        )
        if full:
            batches.append([index])
            counted = own
        else:
            last.append(index)
            counted += own
    return batches


def padded_batches(
    rows: Sequence[Encoded], pad_token_id: int, device: Any, batch_tokens: int = BATCH_TOKENS
) -> Iterator[dict[str, Tensor]]:
    """The rows in padded batches of similar length, on a device; see ``length_batches``."""
    for indices in length_batches([len(row.input_ids) for row in rows], batch_tokens):
        batch = collate([rows[index] for index in indices], pad_token_id)
        yield {name: value.to(device) for name, value in batch.items()}


def answer_batches(rows: Sequence[Encoded], batch_tokens: int, batch_answers: int | None = None) -> list[list[int]]:
    """``length_batches`` over the rows with at least one answer token, as indices into ``rows``."""
    scorable = [index for index, row in enumerate(rows) if row.answer_length]
    batches = length_batches(
        [len(rows[index].input_ids) for index in scorable],
        batch_tokens,
        answers=[rows[index].answer_length for index in scorable],
        batch_answers=batch_answers,
    )
    return [[scorable[place] for place in batch] for batch in batches]


def answer_offsets(rows: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """(E + 1,) offsets of each row's answer tokens when the answer tokens of E rows are concatenated."""
    counts = [row.answer_length for row in rows]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def place_rows(
    found: npt.NDArray[Any], offsets: npt.NDArray[np.int64], batch: Sequence[int], values: npt.NDArray[Any]
) -> None:
    """Write the values of a batch, (…, N) with rows concatenated, to the positions of its rows in ``found``."""
    start = 0
    for index in batch:
        stop = start + int(offsets[index + 1] - offsets[index])
        found[..., offsets[index] : offsets[index + 1]] = values[..., start:stop]
        start = stop


def over_batches(
    models: Sequence[nn.Module],
    batches: Sequence[list[int]],
    compute: Callable[[list[int]], npt.NDArray[Any]],
    found: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
    *,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> npt.NDArray[np.float64]:
    """Compute values batch by batch, with models in eval mode, and return them in the order of the rows.

    Args:
        models: the models that ``compute`` runs.
        batches: batches of row indices.
        compute: a batch → (…, N) the values of its rows, concatenated.
        found: (…, all values) zeros, or values that are already known, filled in on one process only.
        offsets: (E + 1,) row i has the values ``offsets[i]:offsets[i + 1]``.
        progress: called after each batch with its number of rows.
        accelerator: an ``accelerate.Accelerator``. Its processes share the batches, and each gets all values. Every process
            runs the same number of batches, so that sharded models do not deadlock.

    Returns:
        (…, all values), the same on every process.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for batch, counts_here in share_of(batches, accelerator):
            values = compute(batch)
            if not counts_here:
                continue
            place_rows(found, offsets, batch, values)
            if progress is not None:
                progress(len(batch))
    return sum_over_processes(found, accelerator)


def share_of(batches: Sequence[list[int]], accelerator: Any) -> Iterator[tuple[list[int], bool]]:
    """This process's batches, and whether their results count. The last round is filled up with repeats that do not count."""
    processes, own = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    for first in range(0, len(batches), processes):
        place = first + own
        yield batches[min(place, len(batches) - 1)], place < len(batches)


def sum_over_processes(values: npt.NDArray[Any], accelerator: Any) -> npt.NDArray[Any]:
    """Sum arrays over processes; each value is nonzero on one process only. NaN stays NaN."""
    if accelerator is None or accelerator.num_processes == 1:
        return values
    # Tensors instead of objects, which would be sent as pickles. fp32 is exact, because the scores were computed in fp32.
    kind = torch.float32 if values.dtype.kind == "f" else torch.int64
    summed = accelerator.reduce(torch.as_tensor(values, dtype=kind, device=accelerator.device), reduction="sum")
    return np.asarray(summed.cpu().numpy(), dtype=values.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode and without a router loss; afterwards each module has its mode again."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with without_router_loss(model):
            yield
    finally:
        for module, training in before:
            module.training = training
