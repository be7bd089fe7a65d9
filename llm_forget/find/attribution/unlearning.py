"""Attribution by unlearning: unlearn an answer for a few steps, and see which rows the model loses with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    """Rank rows by how far their loss rises while the answer is unlearned and other rows are kept.

    In an adapter, some steps of Adam lower the likelihood of the answer and raise that of random rows, so that what the answer
    shares with many rows is lost less. ``scripts/attribution_removal.md`` measures it: it finds fewer of the rows that taught an
    answer than words do, and with many similar rows fewer than gradients.

    A row's noise is the median of its movement while other rows, drawn at random, are unlearned in the same way: some rows
    lose more than others whatever is unlearned.

    Attributes:
        steps: steps of Adam.
        learning_rate: of Adam.
        weight: of the answer; the kept rows have weight 1.
        kept_rows: random rows that are kept in each step.
        controls: how many other rows are unlearned, one after the other, for the noise; 0 to rank by the movement alone.
        shrink: the share of the mean noise that is added to each row's own, because a few controls measure it roughly.
        seed: determines the adapter and all random rows.

    Source: Wang, Hertzmann, Efros, Zhu and Zhang 2024, arXiv:2406.09408, who unlearn images and keep the rest by Fisher
        information.
    """

    steps: int = 20
    learning_rate: float = 1e-2
    weight: float = 0.3
    kept_rows: int = 16
    controls: int = 0
    shrink: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "weight": self.weight,
            "kept_rows": self.kept_rows,
            "shrink": self.shrink,
        }
        wrong = [f"{name} is {value}; give a number above 0" for name, value in numbers.items() if not value > 0]
        wrong += [f"controls is {self.controls}; give 0 or more"] if self.controls < 0 else []
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
        read = partial(
            row_losses,
            pad_token_id=pad_token_id,
            batch_tokens=batch_tokens,
            progress=progress,
            accelerator=accelerator,
        )
        scored = [row for row in rows if row.answer_length]
        drawn = Random(self.seed).sample(scored, min(self.controls, len(scored)))
        with search_adapter(model, seed=self.seed) as adapted:
            start = trainable_state(adapted)
            before = read(adapted, rows)
            moved = []
            for unlearned in (asked, *([row] for row in drawn)):
                restore_trainable(adapted, start)
                self.unlearn(adapted, unlearned, scored, pad_token_id=pad_token_id, batch_tokens=batch_tokens)
                _same_everywhere(adapted, accelerator)
                moved.append(read(adapted, rows) - before)
        if not drawn:
            return moved[0]
        noise = np.median(np.abs(moved[1:]), axis=0)
        return np.asarray(moved[0] / np.sqrt(noise + self.shrink * np.nanmean(noise)))

    def unlearn(
        self,
        model: nn.Module,
        unlearned: Sequence[Encoded],
        others: Sequence[Encoded],
        *,
        pad_token_id: int,
        batch_tokens: int = 2048,
    ) -> None:
        """Take the steps in the trainable weights of a model.

        Args:
            model: a model inside ``search_adapter``.
            unlearned: the answers to unlearn.
            others: the rows from which those to keep are drawn. A row that equals an answer to unlearn is never drawn.
            pad_token_id: any id of the vocabulary.
            batch_tokens: most tokens of the kept rows in a step, with padding.
        """
        ids = {row.input_ids for row in unlearned}
        kept = [row for row in others if row.input_ids not in ids]
        draw, device = Random(self.seed), next(model.parameters()).device
        optimiser = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], self.learning_rate)
        with evaluating(model), torch.enable_grad():
            for _ in range(self.steps):
                optimiser.zero_grad()
                batch = draw.sample(kept, min(self.kept_rows, len(kept)))
                while len(batch) > 1 and len(batch) * max(len(row.input_ids) for row in batch) > batch_tokens:
                    batch.pop()
                # two backward passes, so that only one batch is in memory
                for rows, weight in ((unlearned, self.weight), (batch, -1.0)):
                    if not rows:
                        continue
                    inputs = {name: one.to(device) for name, one in collate(rows, pad_token_id).items()}
                    with autocast_like(model):
                        scores = score_answers(model, inputs)
                        loss = weight * grad_ascent_loss(scores.token_logps, scores.mask).mean()
                    loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()


@torch.no_grad()
def _same_everywhere(model: nn.Module, accelerator: Any) -> None:
    """Give all processes the trained weights of the first one; on GPUs, the same steps may end in slightly different weights."""
    if accelerator is None or accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for value in model.parameters():
        if value.requires_grad:
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
