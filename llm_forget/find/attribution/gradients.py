"""Gradient similarity: which rows pull the weights in the same direction as an answer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llm_forget.config import AdapterConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.find.attribution.adapter import lora_layers, search_adapter
from llm_forget.model.batching import answer_batches, evaluating, over_batches
from llm_forget.model.limits import check_rows
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like, exact

Floats = npt.NDArray[np.float64]
Take = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Gradients:
    """Rank rows by the cosine of their gradient and the answer's, in the weights of an adapter.

    Attributes:
        rank: of the adapter that a model without one gets.
        seed: determines that adapter.
    """

    rank: int = 16
    seed: int = 0

    def row_scores(
        self,
        model: Any,
        rows: Sequence[Encoded],
        queries: Sequence[Encoded],
        *,
        pad_token_id: int,
        batch_tokens: int = 2048,
        progress: Callable[[int], None] | None = None,
        accelerator: Any = None,
    ) -> Floats:
        """(E,) mean over the queries of ``gradient_similarity``, with its arguments; NaN for a row without a scored token."""
        with search_adapter(model, AdapterConfig(rank=self.rank, alpha=self.rank), seed=self.seed) as adapted:
            found = gradient_similarity(
                adapted,
                rows,
                queries,
                pad_token_id=pad_token_id,
                batch_tokens=batch_tokens,
                progress=progress,
                accelerator=accelerator,
            )
        return np.asarray(found.mean(axis=0))


class _MixedRows(Exception):
    """A layer sees the tokens of all rows as one list, as experts do, so that the rows need a pass each."""


def gradient_similarity(
    model: nn.Module,
    rows: Sequence[Encoded],
    queries: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> Floats:
    """Cosine of the gradients of each row and each query, in the trainable factors of an adapter.

    The gradient is that of the answer's mean cross-entropy. It takes one pass over the rows. A row's gradient is freed as soon
    as its products with the queries' gradients are known, so the memory is that of one batch and of the queries' gradients.

    Args:
        model: a model inside ``search_adapter``.
        rows: the candidates.
        queries: the answers to explain; few, because their gradients are kept.
        pad_token_id: any id of the vocabulary.
        batch_tokens: most tokens of a batch, with padding.
        progress: called after each batch with its number of rows.
        accelerator: an ``accelerate.Accelerator``; its processes share the rows, and each gets all results.

    Returns:
        (Q, E) in [−1, 1], where 1 is the same direction. NaN for a row without a scored token, or if a gradient is zero or not
        finite.

    Raises:
        DataError: the model cannot read a row.

    Source: Xia et al. 2024, arXiv:2402.04333 (LESS), with the gradient in place of Adam's update.
    """
    check_rows(model, [*rows, *queries], "searched")
    with evaluating(model):
        wanted = _query_gradients(model, queries, pad_token_id)

    def compute(batch: list[int]) -> Floats:
        try:
            return of_batch(batch)
        except _MixedRows:
            return np.concatenate([of_batch([index]) for index in batch], axis=1)

    def of_batch(batch: list[int]) -> Floats:
        products = torch.zeros(len(batch), len(queries), dtype=torch.float64)
        squares = torch.zeros(len(batch), dtype=torch.float64)

        def take(name: str, gradients: Tensor) -> None:
            flat = gradients.flatten(1)
            with exact(flat):
                products.add_((flat @ wanted[name].T).double().cpu())
            squares.add_(flat.square().sum(1).double().cpu())

        backward_by_row(model, [rows[index] for index in batch], pad_token_id, take)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (products / squares.sqrt()[:, None]).T.numpy()

    found = over_batches(
        [model],
        answer_batches(rows, batch_tokens),
        compute,
        np.zeros((len(queries), len(rows))),
        np.arange(len(rows) + 1),
        progress=progress,
        accelerator=accelerator,
    )
    scored = np.array([row.answer_length > 0 for row in rows], dtype=bool)
    return np.where(scored & np.isfinite(found), found, np.nan)


def _query_gradients(model: nn.Module, queries: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Name of a factor → (Q, n) the queries' gradients. Each query has norm 1 over all factors."""
    found: dict[str, list[Tensor]] = {}
    for query in queries:
        taken: dict[str, Tensor] = {}
        backward_by_row(model, [query], pad_token_id, taken.__setitem__)
        norm = torch.stack([one.double().square().sum() for one in taken.values()]).sum().sqrt()
        for name, one in taken.items():
            found.setdefault(name, []).append((one.flatten() / norm).to(one.dtype))
    return {name: torch.stack(parts) for name, parts in found.items()}


def backward_by_row(model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, take: Take) -> None:
    """One forward and backward pass of a batch, with each row's own gradient of its mean answer cross-entropy (nats).

    Args:
        model: a model inside ``search_adapter``.
        rows: the batch.
        pad_token_id: any id of the vocabulary.
        take: called once for each trainable factor with its name and the gradients of the rows, (B, out, in) in fp32.
    """
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in collate(rows, pad_token_id).items()}
    with torch.enable_grad(), _taking(model, len(rows), take), autocast_like(model):
        loss = -score_answers(model, inputs).mean_logps.sum()
        loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _taking(model: nn.Module, rows: int, take: Take) -> Iterator[None]:
    """Context in which a backward pass calls ``take`` with the gradients of the rows, factor by factor.

    The gradient of a linear layer is the sum over tokens of (gradient of the output) ⊗ (input), so each row's part is the sum
    over its own tokens. A layer that runs several times in one forward pass is taken when the last of its parts is known.
    """
    waiting: dict[str, int] = {}
    parts: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def after_forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # a trial of the head, without gradients
                return
            given = inputs[0].detach()
            if rows > 1 and (given.dim() < 3 or len(given) != rows):
                raise _MixedRows
            waiting[name] = waiting.get(name, 0) + 1

            def after_backward(gradient: Tensor) -> None:
                part = _by_row(gradient.detach(), given, rows)
                parts[name] = parts[name] + part if name in parts else part
                waiting[name] -= 1
                if not waiting[name]:
                    take(name, parts.pop(name))

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        return after_forward

    layers = {name: layer for name, layer in lora_layers(model).items() if layer.weight.requires_grad}
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.weight.grad = None


def _by_row(gradient: Tensor, given: Tensor, rows: int) -> Tensor:
    """(B, T, out) and (B, T, in) → (B, out, in) in fp32; of a single row, the tokens may have any shape."""
    left, right = (one.float().reshape(rows, -1, one.shape[-1]) for one in (gradient, given))
    with exact(gradient, given):
        return torch.bmm(left.transpose(1, 2), right)
