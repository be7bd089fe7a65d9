"""The norm of each answer's gradient: one backward a row, for the gradient-norm attack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.evaluation.tokens import Floats
from llm_forget.model.batching import over_batches
from llm_forget.model.head import below_wrapper
from llm_forget.model.logprobs import score_answers

_LORA = "lora_"


def gradient_norms(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    parameters: str = "all",
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> Floats:
    """Euclidean norm of the gradient of each row's mean answer cross-entropy, in nats, by a set of the weights.

    Needs the memory of one forward and one backward of the longest row, and of the gradient of one weight matrix: each
    is dropped as soon as its square is summed.

    Args:
        model: a causal language model, wrapped or not; each process holds all of it.
        rows: the encoded answers.
        pad_token_id: any id of the vocabulary.
        parameters: ``all`` for every weight but those of LoRA matrices: with an adapter, the gradient by the weights
            that it is added to, which is that of the merged model, so that models with and without an adapter compare;
            ``adapter`` for the LoRA matrices alone; or a regular expression of which a part of the weight's name must match,
            such as ``layers\\.29\\.``.
        progress: called after each row with 1.
        accelerator: an ``accelerate.Accelerator``; each of its processes then takes a share of the rows.

    Returns:
        (E,) in [0, ∞); NaN for a row without a scored token, and where the gradient is not finite.

    Raises:
        UserError: no such weight, or one that is quantised and has no gradient.
    """
    inner = below_wrapper(model)
    chosen = select_parameters(inner, parameters)
    device = next(inner.parameters()).device
    scorable = [row.answer_length > 0 for row in rows]
    with torch.enable_grad(), _summed_squares(inner, chosen) as squares:

        def compute(batch: list[int]) -> Floats:
            inputs = collate([rows[index] for index in batch], pad_token_id)
            squares.clear()
            loss = -score_answers(inner, {name: tensor.to(device) for name, tensor in inputs.items()}).mean_logps.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
            return np.array([norm if np.isfinite(norm) else np.nan])

        found = over_batches(
            [inner],
            [[index] for index, known in enumerate(scorable) if known],
            compute,
            np.zeros(len(rows)),
            np.arange(len(rows) + 1),  # one value a row
            progress=progress,
            accelerator=accelerator,
        )
    return np.where(scorable, found, np.nan)


def select_parameters(model: nn.Module, parameters: str) -> list[nn.Parameter]:
    """The weights that ``parameters`` names, as for ``gradient_norms``; a tied weight once.

    Raises:
        UserError: none, an expression that is none, or a quantised weight.
    """
    try:
        wanted = re.compile({"all": f"^(?!.*{_LORA})", "adapter": _LORA}.get(parameters, parameters))
    except re.error as error:
        raise UserError(f"parameters is {parameters!r}, which is no regular expression: {error}") from None
    named = [(name, weight) for name, weight in model.named_parameters() if wanted.search(name)]
    if not named:
        example = next((name for name, _ in model.named_parameters()), "none")
        raise UserError(
            f"parameters is {parameters!r}, and no weight of the model matches; give all, adapter (for a model with a LoRA "
            f"adapter) or a part of names such as {example}"
        )
    whole = [name for name, weight in named if not weight.is_floating_point()]
    if whole:
        raise UserError(
            f"{len(whole)} weights that parameters = {parameters!r} names are quantised and have no gradient (the first is "
            f"{whole[0]}); give adapter, or load the model without quantisation"
        )
    return [weight for _, weight in named]


@contextmanager
def _summed_squares(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Inside, a backward puts the sum of squares of each chosen weight's gradient into the list, and keeps no gradient."""
    squares: list[Tensor] = []
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]

    def take(weight: Tensor) -> None:
        if weight.grad is not None:
            squares.append(weight.grad.detach().float().square().sum())
            weight.grad = None

    handles = []
    try:
        for weight, _, _ in before:
            weight.requires_grad_(False)
            weight.grad = None
        for weight in chosen:
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for weight, required, gradient in before:
            weight.requires_grad_(required)
            weight.grad = gradient
