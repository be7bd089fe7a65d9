"""The gradient norm of each answer, for the gradient-norm attack: one backward pass per row."""

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
    """Compute the Euclidean norm of the gradient of each row's mean answer cross-entropy (nats) for a set of weights.

    It needs the memory of one forward and one backward pass of the longest row, and of the gradient of one weight matrix:
    each gradient is freed as soon as its squared sum is known.

    Args:
        model: a causal language model, wrapped or not; each process holds all of it.
        rows: the encoded answers.
        pad_token_id: any id of the vocabulary.
        parameters: ``all`` for every weight except the LoRA matrices. With an adapter, this is the gradient of the base
            weights, which equals the merged model's gradient, so models with and without an adapter are comparable.
            ``adapter`` for only the LoRA matrices. Or a regular expression that is searched for in the weights' names, such
            as ``layers\\.29\\.``.
        progress: called with 1 after each row.
        accelerator: an ``accelerate.Accelerator``; its processes share the rows.

    Returns:
        (E,) in [0, ∞); NaN for a row without a scored token or with a gradient that is not finite.

    Raises:
        UserError: no weight matches, or a weight is quantised and has no gradient.
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
            np.arange(len(rows) + 1),  # one value per row
            progress=progress,
            accelerator=accelerator,
        )
    return np.where(scorable, found, np.nan)


def select_parameters(model: nn.Module, parameters: str) -> list[nn.Parameter]:
    """Select the weights for ``parameters``, as in ``gradient_norms``; a tied weight is selected once.

    Raises:
        UserError: no weight matches, the regular expression is invalid, or a weight is quantised.
    """
    try:
        wanted = re.compile({"all": f"^(?!.*{_LORA})", "adapter": _LORA}.get(parameters, parameters))
    except re.error as error:
        raise UserError(f"parameters is {parameters!r}, which is not a valid regular expression: {error}") from None
    named = [(name, weight) for name, weight in model.named_parameters() if wanted.search(name)]
    if not named:
        example = next((name for name, _ in model.named_parameters()), "none")
        raise UserError(
            f"parameters is {parameters!r}, but no weight of the model matches; give all, adapter (for a model with a LoRA "
            f"adapter) or a part of the weights' names, such as {example}"
        )
    whole = [name for name, weight in named if not weight.is_floating_point()]
    if whole:
        raise UserError(
            f"parameters is {parameters!r}, but {len(whole)} of these weights are quantised and have no gradient (the first "
            f"is {whole[0]}); give adapter, or load the model without quantisation"
        )
    return [weight for _, weight in named]


@contextmanager
def _summed_squares(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Context in which a backward pass adds each chosen gradient's sum of squares to a list and frees the gradient."""
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
