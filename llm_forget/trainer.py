"""The trainer: one forward of forget and retain rows together, the mean of the losses, and no method known by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.guards import CancellationGuard
from llm_forget.logprobs import AnswerScores, score_answers
from llm_forget.methods import Method
from llm_forget.resume import Resumable
from llm_forget.retain import RetainTerm

Pair = tuple[int, int | None]


class PairDataset(Dataset[tuple[int, Encoded, Encoded | None]]):
    """The rows of a schedule in its order: (forget index, forget row, retain row or None)."""

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded], pairs: Sequence[Pair]) -> None:
        self.forget, self.retain, self.pairs = forget, retain, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, Encoded, Encoded | None]:
        forget, retain = self.pairs[index]
        return forget, self.forget[forget], None if retain is None else self.retain[retain]


@dataclass(frozen=True)
class PairCollator:
    """B pairs → one padded batch of 2B rows (B without retain rows): forget rows first."""

    pad_token_id: int

    def __call__(self, pairs: Sequence[tuple[int, Encoded, Encoded | None]]) -> dict[str, Tensor]:
        """``collate`` of all rows, and ``forget_index`` (B,) to look the reference's log-probs up by."""
        rows = [forget for _, forget, _ in pairs] + [retain for _, _, retain in pairs if retain is not None]
        batch = collate(rows, self.pad_token_id)
        batch["forget_index"] = torch.tensor([index for index, _, _ in pairs])
        return batch


@dataclass(frozen=True)
class Objective:
    """What is minimised: γ · forget + α · retain.

    Attributes:
        method: gives the forget loss; None to train on the retain rows alone.
        retain: gives the retain loss, or None.
        forget_weight: γ.
        retain_weight: α.
        satisfied_below: an example whose mean answer probability is at or below this no longer counts in the forget loss.
    """

    method: Method | None
    retain: RetainTerm | None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    satisfied_below: float | None = None


class UnlearningTrainer(Resumable, Trainer):
    """A ``transformers.Trainer`` whose batches are pairs and whose loss is an ``Objective``.

    Means are over examples, so that 1 × 8 rows, 8 × 1 accumulated and 2 processes × 4 give the same update.

    Args:
        model: with its adapter on, or in full.
        args: training arguments.
        dataset: the run's pairs, in order.
        objective: what is minimised.
        pad_token_id: what pads a batch.
        reference_logps: (n forget rows,) summed answer log-probs under the reference, where the method needs them.
        reference_model: a frozen copy, for full fine-tuning with a loss that needs the reference's logits.
    """

    # The loss is a mean over a micro-batch, and the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        dataset: PairDataset,
        objective: Objective,
        *,
        pad_token_id: int,
        reference_logps: Tensor | None = None,
        reference_model: nn.Module | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=PairCollator(pad_token_id),
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # progress is shown by our own bar
        self.objective = objective
        self.reference_logps = reference_logps
        self.reference_model = reference_model
        self.non_finite_at: int | None = None
        self.guard: CancellationGuard | None = None
        self._terms: dict[str, list[Tensor]] = defaultdict(list)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the pairs is the schedule's; accelerate gives each process its slice of it."""
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """γ · mean forget loss + α · mean retain loss of one micro-batch."""
        terms = self._loss_terms(model, inputs)
        if self.guard is not None and {"forget_loss", "retain_loss"} <= terms.keys():
            forget = self.objective.forget_weight * terms["forget_loss"]
            retain = self.objective.retain_weight * terms["retain_loss"]
            terms |= self.guard.look(model, forget, retain, self.state.global_step + 1)
        for name, value in terms.items():
            self._terms[name].append(value.detach())
        loss = terms["loss"]
        return (loss, {}) if return_outputs else loss

    def _loss_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        goal, count = self.objective, len(inputs["forget_index"])
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "answer_mask")}
        forget_needs = goal.method.needs if goal.method else None
        retain_needs = goal.retain.needs if goal.retain else None
        if goal.method is None:
            batch = {name: value[count:] for name, value in batch.items()}
        wants_logits = any(needs is not None and needs.logits for needs in (forget_needs, retain_needs))
        scores = score_answers(model, batch, keep_logits=wants_logits)
        if any(needs is not None and needs.reference_logits for needs in (forget_needs, retain_needs)):
            reference = self._score_reference(model, batch).logits
            scores = AnswerScores(**{**vars(scores), "reference_logits": reference})

        terms: dict[str, Tensor] = {}
        total = scores.token_logps.new_zeros(())
        if goal.method is not None:
            forget = scores.rows(slice(0, count))
            terms["forget_loss"], terms["forget_probability"] = self._forget_loss(goal.method, forget, inputs)
            total = total + goal.forget_weight * terms["forget_loss"]
        if goal.retain is not None:
            kept = scores.rows(slice(count if goal.method else 0, None))
            terms["retain_loss"] = goal.retain.retain_loss(kept).mean()
            total = total + goal.retain_weight * terms["retain_loss"]
        return {**terms, "loss": total}

    def _forget_loss(self, method: Method, forget: AnswerScores, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if method.needs.reference_logps:
            if self.reference_logps is None:
                raise ValueError(f"{type(method).__name__} needs reference log-probs, and none were computed")
            known = self.reference_logps.to(forget.token_logps.device)[inputs["forget_index"]]
            forget = AnswerScores(**{**vars(forget), "reference_logps": known})
        losses = method.forget_loss(forget)
        probability = forget.mean_logps.detach().exp()
        if self.objective.satisfied_below is not None:
            losses = losses * (probability > self.objective.satisfied_below)
        return losses.mean(), probability.mean()

    @torch.no_grad()
    def _score_reference(self, model: nn.Module, batch: dict[str, Tensor]) -> AnswerScores:
        """The reference's scores: the adapter switched off, or the frozen copy; always without dropout."""
        if self.reference_model is not None:
            return score_answers(self.reference_model, batch, keep_logits=True)
        unwrapped = self.accelerator.unwrap_model(model)
        training = model.training
        model.eval()
        try:
            with unwrapped.disable_adapter():
                return score_answers(model, batch, keep_logits=True)
        finally:
            model.train(training)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As the Trainer's; a gradient that is not finite never reaches the optimiser, and ends the run.

        Gradients are the same on every process by now, so all of them decide alike.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            self.non_finite_at = self.state.global_step + 1
            self.optimizer.zero_grad()
            self.control.should_training_stop = True
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss's parts, averaged over micro-batches and processes, to what is logged."""
        for name, values in self._terms.items():
            if name != "loss":
                mean = torch.stack(values).mean()
                logs[name] = float(self.accelerator.reduce(mean, reduction="mean"))
        self._terms.clear()
        super().log(logs, start_time)
