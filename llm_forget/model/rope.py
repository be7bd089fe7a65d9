"""Rotary embeddings that depend on the longest row of a batch: compute them for each row as if it were alone.

With dynamic NTK and LongRoPE, transformers chooses the frequencies of a whole batch by its longest row, and dynamic NTK also
keeps those of earlier batches. So a row's log-probs would depend on its neighbours, and reference and training would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.model.head import below_wrapper
from llm_forget.model.structure import rope_limit


@contextmanager
def rope_by_row(model: nn.Module, attention_mask: Tensor) -> Iterator[dict[str, Tensor]]:
    """In this context each row of a right-padded batch has the frequencies of its own length.

    Args:
        model: wrapped or not.
        attention_mask: (B, T) 1 for tokens, 0 for padding.

    Yields:
        Further inputs for the model; empty if all rows of the batch have the same frequencies in any case.
    """
    limit = rope_limit(below_wrapper(model).config)
    if limit is None or attention_mask.shape[1] <= limit:
        yield {}
        return
    keys = attention_mask.sum(-1).tolist()
    keys = [size if size > limit else 0 for size in keys]
    groups = [torch.tensor([row for row, one in enumerate(keys) if one == key]) for key in sorted(set(keys))]
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with ExitStack() as stack:
        for module in model.modules():
            if _varies(module):
                stack.enter_context(_patched(module, groups))
        yield {"position_ids": positions}


def _varies(module: nn.Module) -> bool:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else [kind]
    return any(isinstance(one, str) and ("dynamic" in one or one == "longrope") for one in kinds)


@contextmanager
def _patched(module: Any, groups: list[Tensor]) -> Iterator[None]:
    forward = module.forward
    module.forward = partial(_by_group, forward, groups)
    try:
        yield
    finally:
        del module.forward


def _by_group(
    forward: Callable[..., tuple[Tensor, Tensor]],
    groups: list[Tensor],
    states: Tensor,
    position_ids: Tensor,
    *more: Any,
    **named: Any,
) -> tuple[Tensor, ...]:
    """Cosines and sines (…, B, T, D) for ``position_ids`` (…, B, T), computed for each group of rows by itself."""
    back = torch.cat(groups).argsort().to(position_ids.device)
    found = []
    for rows in groups:
        # a single short row resets what dynamic NTK kept from earlier batches
        forward(states[:1], torch.zeros_like(position_ids[..., :1, :1]), *more, **named)
        found.append(forward(states[rows], position_ids[..., rows, :], *more, **named))
    forward(states[:1], torch.zeros_like(position_ids[..., :1, :1]), *more, **named)
    return tuple(torch.cat(parts, -3).index_select(-3, back) for parts in zip(*found, strict=True))
