"""KL divergence between two models at each answer token, in one pass over the rows."""

from __future__ import annotations

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
from llm_forget.model.batching import answer_batches, answer_offsets, over_batches
from llm_forget.model.head import below_wrapper
from llm_forget.model.logprobs import answer_logits

# Answer tokens per batch. This limits memory to two (256, V) logit tensors: 100 MB in fp32 for a vocabulary of 49 152.
_POSITIONS = 256
# Answer tokens per fp32 computation.
_CHUNK = 32
_LOWEST = -1e4  # probability 0 in fp32; 0 · (−∞) would be NaN


def has_adapter(model: Any) -> bool:
    """Whether a model has an adapter that can be disabled, which gives its target."""
    return hasattr(below_wrapper(model), "disable_adapter")


def token_kl(
    model: nn.Module,
    target: nn.Module | None,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> Floats:
    """Compute the exact ``KL(target ‖ model)`` over the vocabulary at each answer token.

    Each batch goes through one model, then the other. Only the logits of one batch are in memory: at most 256 answer tokens,
    or one row.

    Args:
        model: a causal language model on its device.
        target: the model before unlearning, on the same device; None for ``model`` with its adapter disabled.
        rows: the encoded answers; may be empty.
        pad_token_id: any id of the vocabulary.
        batch_tokens: tokens per batch, including padding.
        progress: called after each batch with its number of rows.
        accelerator: an ``accelerate.Accelerator``; its processes share the batches.

    Returns:
        (N,) nats, in [0, ∞), in the token order of ``score_encoded``; NaN if a model's logits are NaN. For a target (¾, ¼)
        and a model (½, ½) it is ¾ ln 1.5 + ¼ ln ½ = 0.1308.

    Raises:
        UserError: there is no target, or it has another vocabulary.
    """
    inner = below_wrapper(model)
    if target is None and not has_adapter(model):
        raise UserError(
            "the KL to the target needs a target: give the model before unlearning, or a model with an adapter"
        )
    other: Any = inner if target is None else target
    offsets = answer_offsets(rows)
    device = next(inner.parameters()).device

    def compute(batch: list[int]) -> Floats:
        inputs = collate([rows[index] for index in batch], pad_token_id)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        inputs["answer_mask"][:, 0] = False  # nothing predicts the first token of a sequence
        logits = answer_logits(inner, inputs)
        with _adapter_off(inner if target is None else None):
            expected = answer_logits(other, inputs)
        return _chunked(expected, logits)

    batches = answer_batches(rows, batch_tokens, _POSITIONS)
    found = np.zeros(int(offsets[-1]))
    with torch.no_grad():
        return over_batches(
            [inner, other], batches, compute, found, offsets, progress=progress, accelerator=accelerator
        )


@contextmanager
def _adapter_off(model: Any) -> Iterator[None]:
    """Context with the adapter disabled. PEFT also sets ``requires_grad`` of its weights, so that is restored."""
    if model is None:
        yield
        return
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    with model.disable_adapter():
        yield
    for weight, required in before:
        weight.requires_grad_(required)


def _chunked(expected: Tensor, logits: Tensor) -> Floats:
    if expected.shape != logits.shape:
        raise UserError(
            f"the target has a vocabulary of {expected.shape[-1]} and the model one of {logits.shape[-1]}, so their "
            "distributions cannot be compared; give the model that this one was trained from"
        )
    parts = [
        vocabulary_kl(expected[start : start + _CHUNK], logits[start : start + _CHUNK])
        for start in range(0, len(logits), _CHUNK)
    ]
    return torch.cat(parts).double().cpu().numpy()


def vocabulary_kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """(N, V) and (N, V) → (N,) KL(target ‖ model) in nats, computed in fp32 and clipped at 0 against rounding."""
    with torch.autocast(logits.device.type, enabled=False):
        expected = target_logits.float().log_softmax(-1)
        weights = expected.exp()
        difference = expected.clamp_(min=_LOWEST).sub_(logits.float().log_softmax(-1).clamp_(min=_LOWEST))
        return weights.mul_(difference).sum(-1).clamp_(min=0)
