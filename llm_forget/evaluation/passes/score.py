"""Score every (example, answer) pair in one forward pass. All likelihood metrics use these scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.evaluation.tokens import Floats, TokenScores
from llm_forget.model.batching import answer_batches, answer_offsets, over_batches
from llm_forget.model.logprobs import answer_logits

# Positions per fp32 computation on the logits. On a CPU it is small enough for the caches; elsewhere it needs 50 MB for a
# vocabulary of 49 152.
_CHUNK_CPU = 16
_CHUNK = 256
# A log-prob this low has probability 0 in fp32. Clamping to it avoids 0 · (−∞) = NaN in the moments.
_LOWEST = -1e4


def score_encoded(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> TokenScores:
    """Score the answers of rows, without gradients or dropout.

    A batch has rows of similar length. In bf16, numbers depend slightly on the other rows of the batch. The same rows with
    the same ``batch_tokens`` on the same hardware give the same numbers.

    Args:
        model: a causal language model, wrapped or not, on its device.
        rows: the encoded answers; may be empty.
        pad_token_id: the padding token; any id of the vocabulary.
        batch_tokens: tokens per batch, including padding; a longer row has a batch of its own.
        progress: called after each batch with its number of rows.
        accelerator: an ``accelerate.Accelerator``. Its processes share the batches, and each gets all results. Every process
            runs the same number of forward passes, so that sharded models do not deadlock.

    Returns:
        The scores in the order of ``rows``.
    """
    offsets = answer_offsets(rows)
    device = next(model.parameters()).device

    def compute(batch: list[int]) -> Floats:
        inputs = collate([rows[index] for index in batch], pad_token_id)
        return _score_batch(model, {name: tensor.to(device) for name, tensor in inputs.items()})

    found = np.zeros((4, int(offsets[-1])))  # log-prob, hit, mean, std
    # no_grad instead of inference mode: a model that is scored during training may keep tensors created here (rotary tables,
    # autocast copies), and autograd rejects inference tensors.
    with torch.no_grad():
        batches = answer_batches(rows, batch_tokens)
        found = over_batches([model], batches, compute, found, offsets, progress=progress, accelerator=accelerator)
    return TokenScores(found[0], found[1] > 0.5, found[2], found[3], offsets)


def _score_batch(model: nn.Module, batch: dict[str, Tensor]) -> Floats:
    """(4, N) log-prob, hit, mean and standard deviation for the answer tokens of a batch, rows concatenated."""
    mask = batch["answer_mask"].clone()
    mask[:, 0] = False  # the first token of a sequence has no prediction
    logits = answer_logits(model, {**batch, "answer_mask": mask})
    targets = batch["input_ids"][mask]
    return scores_in_chunks(logits, torch.arange(len(targets), device=targets.device), targets)


def scores_in_chunks(logits: Tensor, sources: Tensor, targets: Tensor) -> Floats:
    """Compute ``vocabulary_scores`` of N tokens in chunks.

    Args:
        logits: (M, V).
        sources: (N,) index of the logits that predict each token.
        targets: (N,) the tokens.

    Returns:
        (4, N).
    """
    chunk = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK
    parts = [
        vocabulary_scores(logits[sources[start : start + chunk]], targets[start : start + chunk])
        for start in range(0, len(targets), chunk)
    ]
    return torch.cat(parts, dim=1).double().cpu().numpy()


def vocabulary_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the scores of tokens from the logits that predict them.

    Args:
        logits: (N, V) of any floating type; the function allocates fp32 logits, log-probs and probabilities.
        targets: (N,) the actual tokens.

    Returns:
        (4, N) in fp32: log-prob of the token in nats; 1 if it is the arg-max, else 0; mean and standard deviation of log
        p(v) for v drawn from p. For p = (¾, ¼): mean −0.5623, standard deviation √(3/16) · ln 3 = 0.4757.
    """
    # An enclosing autocast would compute the sums of products in half precision.
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.float()
        hits = (exact.argmax(-1) == targets).float()  # in fp32: four times as fast as in bf16 on a CPU
        logps = exact.log_softmax(-1)
        token_logps = logps.gather(-1, targets[:, None]).squeeze(-1)
        logps.clamp_(min=_LOWEST)
        weights = logps.exp()
        mean = _dot(weights, logps)
        centred = logps.sub_(mean[:, None])  # centred first: E[x²] − E[x]² loses precision for a small variance
        variance = _dot(weights.mul_(centred), centred)
        return torch.stack([token_logps, hits, mean, variance.clamp_(min=0).sqrt_()])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """(N, V) and (N, V) → (N,) inner products of the rows."""
    if left.device.type == "cpu":
        return torch.bmm(left[:, None], right[:, :, None]).flatten()  # twice as fast as multiply and sum
    return (left * right).sum(-1)  # on a GPU, a matrix product may round to TF32
