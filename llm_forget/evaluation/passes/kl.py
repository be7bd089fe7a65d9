"""One pass over two models: how far their distributions lie apart at each answer token."""

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

# Answer tokens of a batch: two (256, V) logits are all that is held of the vocabulary, 100 MB in fp32 for 49 152.
_POSITIONS = 256
# Of which so many are worked on in fp32 at a time.
_CHUNK = 32
_LOWEST = -1e4  # probability 0 in fp32; 0 · (−∞) would be NaN


def has_adapter(model: Any) -> bool:
    """Whether a model has an adapter that can be switched off, so that it holds its own target."""
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
    """``KL(target ‖ model)`` over the vocabulary at each answer token of rows, exactly.

    Both models see a batch one after the other; of the vocabulary no more is held than a batch's logits, of at most 256
    answer tokens or one row.

    Args:
        model: a causal language model on its device.
        target: the model before unlearning, on the same device; None for ``model`` with its adapter switched off.
        rows: the encoded answers; may be empty.
        pad_token_id: any id of the vocabulary.
        batch_tokens: tokens of a batch with its padding.
        progress: called after each batch with the rows that it held.
        accelerator: an ``accelerate.Accelerator``; each of its processes then takes a share of the batches.

    Returns:
        (N,) nats, in [0, ∞), laid out as the tokens of ``score_encoded``; NaN where a model gives NaN. For a target (¾, ¼)
        and a model (½, ½) it is ¾ ln 1.5 + ¼ ln ½ = 0.1308.

    Raises:
        UserError: no target, or one of another vocabulary.
    """
    inner = below_wrapper(model)
    if target is None and not has_adapter(model):
        raise UserError(
            "the KL to the target needs the target: give the model before unlearning, or a model with an adapter"
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
    """Inside, a model's adapter is off; peft then says that its weights are to be trained, which is put back too."""
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
            f"the target has a vocabulary of {expected.shape[-1]} and the model one of {logits.shape[-1]}; their "
            "distributions cannot be compared: give the target that this model was made from"
        )
    parts = [
        vocabulary_kl(expected[start : start + _CHUNK], logits[start : start + _CHUNK])
        for start in range(0, len(logits), _CHUNK)
    ]
    return torch.cat(parts).double().cpu().numpy()


def vocabulary_kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """(N, V) and (N, V) → (N,) KL(target ‖ model) in nats, in fp32; rounding never makes it negative."""
    with torch.autocast(logits.device.type, enabled=False):
        expected = target_logits.float().log_softmax(-1)
        weights = expected.exp()
        difference = expected.clamp_(min=_LOWEST).sub_(logits.float().log_softmax(-1).clamp_(min=_LOWEST))
        return weights.mul_(difference).sum(-1).clamp_(min=0)
