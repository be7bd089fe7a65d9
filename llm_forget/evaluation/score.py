"""One forward for every (example, answer): what all likelihood metrics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.logprobs import answer_logits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Positions whose logits are worked on in fp32 at a time. On a CPU few enough to stay near its caches; elsewhere 50 MB for a
# vocabulary of 49 152.
_CHUNK_CPU = 16
_CHUNK = 256
# A log-prob this low has probability 0 in fp32; clamping there keeps 0 · (−∞) from becoming NaN in the moments.
_LOWEST = -1e4


@dataclass(frozen=True)
class TokenScores:
    """What a model makes of the answer tokens of E rows, N tokens in all, one row after the other.

    Attributes:
        token_logps: (N,) log-probability of each answer token given what precedes it, in nats.
        hits: (N,) whether the token was the arg-max of the vocabulary.
        vocab_mean: (N,) mean of log p(v) over the vocabulary under the model's own p, nats: minus the entropy.
        vocab_std: (N,) standard deviation of log p(v) under the model's own p, nats.
        offsets: (E + 1,) row i owns the tokens ``offsets[i]:offsets[i + 1]``.
    """

    token_logps: Floats
    hits: npt.NDArray[np.bool_]
    vocab_mean: Floats
    vocab_std: Floats
    offsets: Ints

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(E,) scored tokens of each row."""
        return np.diff(self.offsets)

    def mean_logps(self) -> Floats:
        """(E,) mean log-probability per answer token in nats, in (−∞, 0]; NaN for a row without a scored token."""
        return self.row_means(self.token_logps)

    def row_means(self, values: npt.ArrayLike) -> Floats:
        """(N,) one value a token → (E,) their mean in each row, NaN for a row without tokens."""
        values = np.asarray(values, dtype=np.float64)
        means = np.full(len(self), np.nan)
        filled = self.lengths > 0
        if filled.any():
            # reduceat needs non-empty rows: with the empty ones gone, each row ends where the next filled one begins
            means[filled] = np.add.reduceat(values, self.offsets[:-1][filled]) / self.lengths[filled]
        return means

    def row(self, index: int) -> TokenScores:
        """The scores of one row."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        offsets = np.array([0, own.stop - own.start], dtype=np.int64)
        return TokenScores(self.token_logps[own], self.hits[own], self.vocab_mean[own], self.vocab_std[own], offsets)

    def select(self, start: int, stop: int) -> TokenScores:
        """The scores of the rows ``start:stop``."""
        own = slice(int(self.offsets[start]), int(self.offsets[stop]))
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return TokenScores(self.token_logps[own], self.hits[own], self.vocab_mean[own], self.vocab_std[own], offsets)


def score_encoded(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> TokenScores:
    """Score the answers of rows: one forward each, without gradient or dropout.

    Batches hold rows of like length. Numbers in bf16 depend a little on what a row is batched with; the same rows with
    the same ``batch_tokens`` on the same hardware give the same numbers.

    Args:
        model: a causal language model, wrapped or not, on its device.
        rows: the encoded answers; may be empty.
        pad_token_id: what fills shorter rows; any id of the vocabulary.
        batch_tokens: tokens of a batch with its padding; a longer row is a batch of its own.
        progress: called after each batch with the rows that it held.
        accelerator: an ``accelerate.Accelerator``; each of its processes then scores a share of the batches and has all
            results in the end. Every process runs the same number of forwards, so that sharded models do not deadlock.

    Returns:
        The scores in the order of ``rows``.
    """
    counts = [max(len(row.input_ids) - max(row.prompt_length, 1), 0) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    found = np.zeros((4, int(offsets[-1])))  # log-prob, hit, mean, std
    device = next(model.parameters()).device
    scorable = [index for index, count in enumerate(counts) if count]
    batches = length_batches([len(rows[index].input_ids) for index in scorable], batch_tokens)
    # Gradients are only switched off, not forbidden as in inference mode: a model scored in the middle of its training
    # may keep tensors made here (rotary tables, autocast copies), which autograd would then refuse.
    with evaluating(model), torch.no_grad():
        for batch, counts_here in share_of(batches, accelerator):
            chosen = [scorable[place] for place in batch]
            inputs = collate([rows[index] for index in chosen], pad_token_id)
            values = _score_batch(model, {name: tensor.to(device) for name, tensor in inputs.items()})
            if not counts_here:
                continue
            start = 0
            for index in chosen:
                found[:, offsets[index] : offsets[index + 1]] = values[:, start : start + counts[index]]
                start += counts[index]
            if progress is not None:
                progress(len(chosen))
    found = sum_over_processes(found, accelerator)
    return TokenScores(found[0], found[1] > 0.5, found[2], found[3], offsets)


def _score_batch(model: nn.Module, batch: dict[str, Tensor]) -> Floats:
    """(4, N) log-prob, hit, vocabulary mean and spread of the answer tokens of a batch, row after row."""
    mask = batch["answer_mask"].clone()
    mask[:, 0] = False  # nothing predicts the first token of a sequence
    logits = answer_logits(model, {**batch, "answer_mask": mask})
    targets = batch["input_ids"][mask]
    return scores_in_chunks(logits, torch.arange(len(targets), device=targets.device), targets)


def scores_in_chunks(logits: Tensor, sources: Tensor, targets: Tensor) -> Floats:
    """``vocabulary_scores`` of N tokens, few at a time.

    Args:
        logits: (M, V).
        sources: (N,) which of the logits each token is predicted by.
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
    """What a chunk of positions tells about its tokens.

    Args:
        logits: (N, V) of any floating type; fp32 copies of the logits, log-probs and probabilities are made.
        targets: (N,) the tokens that stand there.

    Returns:
        (4, N) in fp32: log-prob of the token in nats; 1 where it was the arg-max; mean and standard deviation of log
        p(v) for v drawn from p. For p = (¾, ¼): mean −0.5623, standard deviation √(3/16) · ln 3 = 0.4757.
    """
    # An autocast that surrounds the call would do the sums of products in half precision.
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.float()
        hits = (exact.argmax(-1) == targets).float()  # in fp32: four times as fast as in bf16 on a CPU
        logps = exact.log_softmax(-1)
        token_logps = logps.gather(-1, targets[:, None]).squeeze(-1)
        logps.clamp_(min=_LOWEST)
        weights = logps.exp()
        mean = _dot(weights, logps)
        centred = logps.sub_(mean[:, None])  # the second moment about 0 would lose the digits of a narrow spread
        variance = _dot(weights.mul_(centred), centred)
        return torch.stack([token_logps, hits, mean, variance.clamp_(min=0).sqrt_()])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """(N, V) and (N, V) → (N,) inner products of the rows."""
    if left.device.type == "cpu":
        return torch.bmm(left[:, None], right[:, :, None]).flatten()  # twice as fast as multiplying and adding
    return (left * right).sum(-1)  # a matrix product may be allowed to round to TF32 on a GPU


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
