"""Attribution by unlearning: unlearn an answer for a few steps, and see which rows the model loses with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.find.attribution.adapter import search_adapter
from llm_forget.methods.grad_ascent import grad_ascent_loss
from llm_forget.model.batching import answer_batches, evaluating, over_batches
from llm_forget.model.limits import check_rows
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like, restore_trainable, trainable_state

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None] | None


@dataclass(frozen=True)
class Unlearning:
    """Rank rows by how far their loss rises while the answer is unlearned, over the square root of each row's own noise.

    The answer is unlearned in an adapter by gradient ascent with Adam, until its cross-entropy has risen by ``rise``. A row's
    noise is the median of its movement while other rows, drawn at random, are unlearned in the same way: some rows lose more
    than others whatever is unlearned.

    Attributes:
        rise: rise of the answer's cross-entropy at which the steps end, nats per token.
        most_steps: the steps end here in any case.
        learning_rate: of Adam.
        controls: how many other rows are unlearned, one after the other, for the noise.
        shrink: the share of the mean noise that is added to each row's own, because a few controls measure it roughly.
        seed: determines the adapter and the other rows.

    Source: Wang, Hertzmann, Efros, Zhu and Zhang 2024, arXiv:2406.09408, for images, with the Fisher information in place of
        Adam's second moments, and without the noise.
    """

    rise: float = 0.3
    most_steps: int = 60
    learning_rate: float = 3e-3
    controls: int = 4
    shrink: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {"rise": self.rise, "most_steps": self.most_steps, "learning_rate": self.learning_rate}
        wrong = [f"{name} is {value}" for name, value in numbers.items() if not value > 0]
        if wrong or self.controls < 0:
            raise UserError(
                f"attribution by unlearning: {', '.join(wrong) or 'controls is negative'}; give a number above 0"
            )

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
        """(E,) movement over the square root of the noise; NaN for a row without a scored token.

        It takes one pass over the rows before, one after, and one for each control.

        Args:
            model: a causal language model on its device, or a ``PeftModel``; its weights are as before afterwards.
            rows: the candidates.
            queries: the answers to explain, unlearned together.
            pad_token_id: any id of the vocabulary.
            batch_tokens: most tokens of a batch, with padding.
            progress: called after each batch of every pass with its number of rows.
            accelerator: an ``accelerate.Accelerator``; its processes share the rows, and each gets all results.

        Raises:
            DataError: the model cannot read a row.
            UserError: no query has a scored token, or the weights are sharded.
        """
        check_rows(model, [*rows, *queries], "searched")
        asked = [query for query in queries if query.answer_length]
        if not asked:
            raise UserError("the answer has no token that can be scored; give a longer answer, or its question as well")
        settings = {"pad_token_id": pad_token_id, "batch_tokens": batch_tokens, "accelerator": accelerator}
        with search_adapter(model, seed=self.seed) as adapted:
            start = trainable_state(adapted)

            def moved(unlearned: Sequence[Encoded]) -> Floats:
                restore_trainable(adapted, start)
                self.unlearn(adapted, unlearned, pad_token_id, accelerator)
                return row_losses(adapted, rows, progress=progress, **settings) - before

            before = row_losses(adapted, rows, progress=progress, **settings)
            risen = moved(asked)
            others = [row for row in rows if row.answer_length]
            drawn = Random(self.seed).sample(others, min(self.controls, len(others)))
            if not drawn:
                return risen
            noise = np.median(np.abs([moved([row]) for row in drawn]), axis=0)
        return np.asarray(risen / np.sqrt(noise + self.shrink * np.nanmean(noise)))

    def unlearn(self, model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, accelerator: Any = None) -> float:
        """Unlearn rows in the trainable weights of a model, and return how far their cross-entropy rose, nats per token."""
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in collate(rows, pad_token_id).items()}
        weights = [value for value in model.parameters() if value.requires_grad]
        optimiser = torch.optim.Adam(weights, lr=self.learning_rate)
        first, risen = None, 0.0
        with evaluating(model), torch.enable_grad():
            for _ in range(self.most_steps):
                with autocast_like(model):
                    scores = score_answers(model, batch)
                    loss = grad_ascent_loss(scores.token_logps, scores.mask).mean()
                now = float(loss.detach())
                first = now if first is None else first
                risen = first - now
                if risen >= self.rise:
                    break
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return risen


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
        with torch.no_grad(), autocast_like(model):
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
