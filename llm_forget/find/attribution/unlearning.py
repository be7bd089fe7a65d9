"""Attribution by unlearning: unlearn an answer for a few steps, and see which rows the model loses with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.find.attribution.embeddings import in_precision, word_embeddings
from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.model.batching import answer_batches, evaluating, over_batches
from llm_forget.model.limits import check_rows
from llm_forget.model.logprobs import score_answers

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None] | None
_LEAST = 1e-3  # nats per token; a row with a smaller loss does not come first for that


@dataclass(frozen=True)
class Unlearning:
    """Rank rows by how far their loss rises when the answer is unlearned a little, in the word embeddings.

    A few steps of gradient ascent raise the answer's loss by ``rise``, and the rows that are lost with it come first. In the
    layers above the embeddings, the effects of different words cancel out, so that rows of the same form are lost with the
    answer whoever they are about. A row's movement is divided by the square root of its loss before, because a row that the
    model knows less well has a larger gradient, and moves more whatever is unlearned. ``scripts/attribution_removal.md`` has
    what was compared, and how far it holds.

    Attributes:
        rise: of the answer's loss, nats per token. A larger one also costs rows that only resemble the answer.
        steps: gradient steps; each covers an equal part of what is left, and steps back if one was too long.

    Source: Wang, Hertzmann, Efros, Zhu and Zhang 2024, arXiv:2406.09408, who unlearn images. Word embeddings as in Yeh et al.
        2022, arXiv:2202.11844 (TracIn-WE).
    """

    rise: float = 0.1
    steps: int = 4

    def __post_init__(self) -> None:
        numbers = {"rise": self.rise, "steps": self.steps}
        wrong = [f"{name} is {value}; give a number above 0" for name, value in numbers.items() if not value > 0]
        if wrong:
            raise UserError(f"attribution by unlearning: {', '.join(wrong)}")

    def row_scores(
        self,
        model: Any,
        rows: Sequence[Encoded],
        queries: Sequence[Encoded],
        *,
        pad_token_id: int,
        batch_tokens: int = 2048,
        progress: Progress = None,
        accelerator: Any = None,
    ) -> Floats:
        """(E,) rise of each row's loss over the square root of its loss; NaN for a row without a scored token.

        It takes one pass over the rows before and one after.

        Args:
            model: a causal language model on its device, or a ``PeftModel``; its weights are as before afterwards.
            rows: the candidates.
            queries: the answers to explain, unlearned together.
            pad_token_id: any id of the vocabulary.
            batch_tokens: most tokens of a batch, with padding.
            progress: called after each batch of both passes with its number of rows.
            accelerator: an ``accelerate.Accelerator``; its processes share the rows, and each gets all results.

        Raises:
            DataError: the model cannot read a row.
            UserError: no query has a scored token, the weights are sharded, or the embeddings are quantised.
        """
        check_rows(model, [*rows, *queries], "searched")
        asked = [query for query in queries if query.answer_length]
        if not asked:
            raise UserError("the answer has no token that can be scored; give a longer answer, or its question as well")
        read = partial(
            row_losses,
            pad_token_id=pad_token_id,
            batch_tokens=batch_tokens,
            progress=progress,
            accelerator=accelerator,
        )
        with word_embeddings(model) as weights:
            before = read(model, rows)
            self.unlearn(model, weights, asked, pad_token_id=pad_token_id)
            _same_everywhere(weights, accelerator)
            after = read(model, rows)
        return np.asarray((after - before) / np.sqrt(np.maximum(before, _LEAST)))

    def unlearn(
        self, model: nn.Module, weights: Sequence[nn.Parameter], queries: Sequence[Encoded], *, pad_token_id: int
    ) -> None:
        """Take the steps.

        Args:
            model: a model inside ``word_embeddings``.
            weights: the weights to change.
            queries: the answers to unlearn.
            pad_token_id: any id of the vocabulary.
        """
        device = weights[0].device
        inputs = {name: one.to(device) for name, one in collate(queries, pad_token_id).items()}
        goal = math.inf
        with evaluating(model), torch.enable_grad():
            for left in range(self.steps, 0, -1):
                with in_precision(model):
                    scores = score_answers(model, inputs)
                    loss = grad_ascent_loss(scores.token_logps, scores.mask).mean()
                now = -float(loss.detach())
                goal = min(goal, now + self.rise)
                gradients = torch.autograd.grad(loss, weights)
                square = sum(float(one.double().square().sum()) for one in gradients)
                if not 0 < square < math.inf:
                    return
                with torch.no_grad():
                    for value, gradient in zip(weights, gradients, strict=True):
                        value.sub_(gradient.to(value.dtype), alpha=(goal - now) / left / square)


@torch.no_grad()
def _same_everywhere(weights: Sequence[nn.Parameter], accelerator: Any) -> None:
    """Give all processes the changed weights of the first one; on GPUs, the same steps may end in slightly different weights."""
    if accelerator is None or accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for value in weights:
        value.copy_(broadcast(value.detach()))


def row_losses(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_tokens: int = 2048,
    progress: Progress = None,
    accelerator: Any = None,
) -> Floats:
    """(E,) mean cross-entropy of each answer, nats per token; NaN for a row without a scored token."""
    device = next(model.parameters()).device

    def compute(batch: list[int]) -> Floats:
        inputs = collate([rows[index] for index in batch], pad_token_id)
        with torch.no_grad(), in_precision(model):
            scores = score_answers(model, {name: tensor.to(device) for name, tensor in inputs.items()})
        return (-scores.mean_logps).double().cpu().numpy()

    found = over_batches(
        [model],
        answer_batches(rows, batch_tokens),
        compute,
        np.zeros(len(rows)),
        np.arange(len(rows) + 1),
        progress=progress,
        accelerator=accelerator,
    )
    return np.where([row.answer_length > 0 for row in rows], found, np.nan)
