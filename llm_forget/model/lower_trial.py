"""Decide whether a model's passes can begin at its first trained block: from its weights, and from a trial on two short rows.

Some models carry more than one tensor from block to block: keys and values that later blocks share, or the embeddings. In these
the trial gives other logits, and they compute all blocks in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.batching import evaluating
from llm_forget.model.head import below_wrapper
from llm_forget.model.logprobs import answer_logits
from llm_forget.model.lower import LowerStates, hold, states_below
from llm_forget.model.structure import vocabulary_of
from llm_forget.model.weights import autocast_like

# Largest difference of logits, in their standard deviations. The same numbers are computed in batches of other shapes.
_ROUNDING, _ROUNDING_HALF = 1e-4, 0.03


@contextmanager
def lower_blocks_once(model: nn.Module) -> Iterator[LowerStates | None]:
    """In this context frozen blocks below the first trained one are computed once for each row, where the model allows it.

    Args:
        model: wrapped or not, on its device, with the weights to train chosen.

    Yields:
        The states; None if all blocks are computed in every pass.
    """
    states = states_below(model)
    if states is not None and not _same(model, states):
        states = None
    hold(model, states)
    try:
        yield states
    finally:
        hold(model, None)


def _same(model: nn.Module, states: LowerStates) -> bool:
    """Whether passes that begin at the first trained block give the logits of whole passes."""

    def look(_: nn.Module, __: Any, out: Any) -> None:
        states.in_tuple = isinstance(out, tuple)

    handle = states.blocks[states.first - 1].register_forward_hook(look)
    rows = _trial_rows(model)
    one = {name: value[:1] for name, value in rows.items()}
    try:
        with evaluating(model), torch.no_grad(), autocast_like(model):
            whole = answer_logits(model, rows)
            handle.remove()
            hold(model, states)
            # a known row, one that is not known next to it, and both known
            first = answer_logits(model, one)
            found = [answer_logits(model, rows) for _ in range(2)]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's code may raise any error when blocks are left out
        return False
    finally:
        handle.remove()
        hold(model, None)
    allowed = _ROUNDING if whole.dtype in (torch.float32, torch.float64) else _ROUNDING_HALF
    pairs = [(first, whole[: len(first)]), *((again, whole) for again in found)]
    return all(_distance(left, right) <= allowed for left, right in pairs)


def _distance(left: Tensor, right: Tensor) -> float:
    return float(((left - right).float().abs().amax(-1) / right.float().std(-1).clamp(min=1e-6)).max())


def _trial_rows(model: nn.Module) -> dict[str, Tensor]:
    """Two rows of different length without a common prefix."""
    known, device = vocabulary_of(below_wrapper(model).config), next(model.parameters()).device
    lengths = (9, 6)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = (torch.arange(length) * 7 + row + 1) % known
        mask[row, :length] = 1
    answers = mask.bool()
    answers[:, 0] = False
    batch = {"input_ids": ids, "attention_mask": mask, "answer_mask": answers}
    return {name: value.to(device) for name, value in batch.items()}
