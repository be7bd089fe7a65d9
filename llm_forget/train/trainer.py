"""The trainer: one forward pass over forget and retain rows, and their mean losses. It has no code for specific methods."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from llm_forget.model.checkpointing import FrozenStaysFrozen
from llm_forget.model.logprobs import Part, hidden_layer, score_parts
from llm_forget.scores import AnswerScores
from llm_forget.train.batches import PairCollator, PairDataset
from llm_forget.train.objective import Objective, References
from llm_forget.train.resume import Resumable
from llm_forget.train.split_step import SplitStep
from llm_forget.train.step_rows import RowGroup
from llm_forget.wrappers import Wrapper


class UnlearningTrainer(Resumable, Trainer):
    """A ``transformers.Trainer`` whose batches are pairs and whose loss is an ``Objective``.

    Losses are means over examples: one batch of 8 pairs, 8 accumulated batches of 1 pair, and 2 processes with 4 pairs each
    give the same update.

    Args:
        model: the model with its adapter, or for full fine-tuning.
        args: training arguments.
        dataset: the pairs of the run, in order.
        objective: the objective to minimise.
        pad_token_id: the padding token.
        reference: scores of the reference, computed before training.
        wrappers: the gradient wrappers, in the order of their application.
        callbacks: further ``TrainerCallback`` objects.
        optimizer: the optimizer; None for that of ``args``.
    """

    # The loss is a mean over a micro-batch, so the Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        dataset: PairDataset,
        objective: Objective,
        *,
        pad_token_id: int,
        reference: References | None = None,
        wrappers: Sequence[Wrapper] = (),
        callbacks: Sequence[Any] = (),
        optimizer: Any = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=PairCollator(pad_token_id, objective.rows.scored_alternatives),
            callbacks=list(callbacks),
            optimizers=(optimizer, None),
        )
        self.remove_callback(PrinterCallback)  # we show progress with our own bar
        self.add_callback(FrozenStaysFrozen())
        self.objective = objective
        self.reference = reference or References()
        self.wrappers = wrappers
        self._split: SplitStep | None = None
        self.non_finite_at: int | None = None
        self._terms: dict[str, list[Tensor]] = defaultdict(list)

    def get_train_dataloader(self) -> Any:
        """The batches. The Trainer's own loader would import datasets, to ask whether the pairs come from it."""
        rows = self.train_dataset
        loader = torch.utils.data.DataLoader(
            rows,
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(rows),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Keep the order of the schedule; accelerate gives each process its slice of it."""
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute γ · mean forget loss + α · mean retain loss of one micro-batch."""
        terms = self._loss_terms(model, inputs, self.objective)
        self._keep(terms)
        return (terms["loss"], {}) if return_outputs else terms["loss"]

    def _loss_terms(self, model: nn.Module, inputs: dict[str, Tensor], goal: Objective) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch in one forward pass over the rows that the objective uses."""
        chosen = goal.rows.select(inputs, goal.active(inputs["forget_index"]))
        batch, parts = chosen.batch, chosen.parts
        layer = hidden_layer(model, self.objective.layer) if goal.rows.hidden else None
        scores = dict(zip(parts, score_parts(model, batch, list(parts.values()), layer=layer), strict=True))
        for group in goal.rows.groups:
            if group.reference:
                own = {name: value[parts[group.name].rows] for name, value in batch.items()}
                scores[group.name] = self._with_reference(model, own, group, scores[group.name], layer)
        if goal.method is not None:
            needs = goal.method.needs
            forget = replace(scores["forget"], alternative=scores.get("alternative"))
            if needs.alternative_tokens:
                forget = replace(forget, alternative_tokens=chosen.alternative_tokens)
            scores["forget"] = self.reference.add(forget, chosen.forget_index, goal.method)
        return goal.terms(scores, chosen.forget_index, len(inputs["forget_index"]))

    def _with_reference(
        self, model: nn.Module, rows: dict[str, Tensor], group: RowGroup, scores: AnswerScores, layer: int | None
    ) -> AnswerScores:
        """Add the reference's scores of the same rows, from a separate forward pass."""
        wanted = Part(slice(None), group.reference_logits, group.reference_hidden)
        theirs = self._score_reference(model, rows, wanted, layer if group.reference_hidden else None)
        return replace(scores, reference_logits=theirs.logits, reference_hidden=theirs.hidden)

    @torch.no_grad()
    def _score_reference(
        self, model: nn.Module, batch: dict[str, Tensor], part: Part, layer: int | None = None
    ) -> AnswerScores:
        """Score rows with the reference: the model with its adapter disabled, or the frozen copy; always without dropout."""
        if self.reference.model is not None:
            return score_parts(self.reference.model, batch, [part], layer=layer)[0]
        unwrapped = self.accelerator.unwrap_model(model)
        training = model.training
        model.eval()
        try:
            with unwrapped.disable_adapter():
                return score_parts(model, batch, [part], layer=layer)[0]
        finally:
            model.train(training)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Compute the gradient norm. If it is not finite, end the run before the gradient reaches the optimizer.

        The gradient is already reduced over all processes, so all make the same decision.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            self.non_finite_at = self.state.global_step + 1
            self.optimizer.zero_grad()
            self.control.should_training_stop = True
        return norm

    def micro_losses(self) -> Tensor:
        """The losses of the step's micro-batches on this process."""
        return torch.stack(self._terms["loss"])

    def _keep(self, terms: dict[str, Tensor]) -> None:
        """Store the terms until the next ``log``."""
        for name, value in terms.items():
            self._terms[name].append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, averaged over micro-batches and processes, to the Trainer's log."""
        for name, values in self._terms.items():
            if name != "loss":
                mean = torch.stack(values).mean()
                logs[name] = float(self.accelerator.reduce(mean, reduction="mean"))
        self._terms.clear()
        super().log(logs, start_time)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Run the Trainer's step inside the wrappers' contexts."""
        with ExitStack() as stack:
            for wrapper in self.wrappers:
                stack.enter_context(wrapper.during(model))
            if not any(wrapper.splits_gradient for wrapper in self.wrappers):
                return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-any-return]
            return self._split_step(model, self._prepare_inputs(inputs))

    def _split_step(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Run one micro-batch with separate gradients. The last micro-batch of a step gives their sum to the optimizer."""
        model.train()
        goal = self.objective
        if self._split is None:
            bare = self.accelerator.unwrap_model(model)
            halves = {True: replace(goal, retain=None, more=()), False: replace(goal, method=None)}

            def terms_of(inputs: dict[str, Tensor], of_forget: bool) -> dict[str, Tensor]:
                with self.compute_loss_context_manager():
                    return self._loss_terms(bare, inputs, halves[of_forget])

            self._split = SplitStep(
                self.wrappers,
                terms_of,
                [value for value in bare.parameters() if value.requires_grad],
                lambda value: self.accelerator.reduce(value, reduction="mean"),
                self.args.gradient_accumulation_steps,
                bool(goal.kept),
            )
        terms = self._split.add(inputs)
        if "retain_loss" in terms:
            terms["loss"] = terms["loss"] + goal.total_weight * terms["retain_loss"]
        if self.accelerator.sync_gradients:
            step = self._split.finish(goal.total_weight)
            terms["retain_weight"] = torch.tensor(step.retain_weight, device=terms["loss"].device)
        self._keep(terms)
        loss: Tensor = terms["loss"] / self.args.gradient_accumulation_steps
        return loss
