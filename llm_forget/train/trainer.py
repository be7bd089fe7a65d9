"""The trainer: one forward of forget and retain rows together, the mean of the losses, and no method known by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.methods import Method, Needs
from llm_forget.model.checkpointing import FrozenStaysFrozen
from llm_forget.model.logprobs import Part, hidden_layer, score_parts
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores
from llm_forget.train.resume import Resumable
from llm_forget.train.split_step import SplitStep
from llm_forget.wrappers import Wrapper

Pair = tuple[int, int | None]


class PairRow(NamedTuple):
    """One pair of a schedule: the forget row's index and tokens, its retain row, and another answer to the forget prompt."""

    forget_index: int
    forget: Encoded
    retain: Encoded | None = None
    alternative: Encoded | None = None


class PairDataset(Dataset[PairRow]):
    """The rows of a schedule in its order; alternatives are those of the forget rows, one each, or None."""

    def __init__(
        self,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        pairs: Sequence[Pair],
        alternatives: Sequence[Encoded] | None = None,
    ) -> None:
        self.forget, self.retain, self.pairs, self.alternatives = forget, retain, pairs, alternatives

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairRow:
        forget, retain = self.pairs[index]
        return PairRow(
            forget,
            self.forget[forget],
            None if retain is None else self.retain[retain],
            None if self.alternatives is None else self.alternatives[forget],
        )


@dataclass(frozen=True)
class PairCollator:
    """B pairs → one padded batch: B forget rows, B alternatives where they are scored, and B retain rows where there are any."""

    pad_token_id: int
    score_alternatives: bool = True

    def __call__(self, pairs: Sequence[PairRow]) -> dict[str, Tensor]:
        """``collate`` of all rows, ``forget_index`` (B,), and ``alternative_tokens`` (B, A), −1 where there is none."""
        others = [pair.alternative for pair in pairs if pair.alternative is not None]
        rows = [pair.forget for pair in pairs] + (others if self.score_alternatives else [])
        batch = collate([*rows, *(pair.retain for pair in pairs if pair.retain is not None)], self.pad_token_id)
        batch["forget_index"] = torch.tensor([pair.forget_index for pair in pairs])
        if others and not self.score_alternatives:
            answers = [torch.tensor(row.input_ids[row.prompt_length :]) for row in others]
            batch["alternative_tokens"] = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1)
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

    @property
    def needs(self) -> tuple[Needs, Needs]:
        """What method and retain term need, nothing where there is none."""
        return (self.method.needs if self.method else Needs(), self.retain.needs if self.retain else Needs())

    @property
    def layer(self) -> int | None:
        """The one block that hidden states are taken from; None for the default.

        Raises:
            ValueError: method and retain term name different ones.
        """
        named = {needs.layer for needs in self.needs} - {None}
        if len(named) > 1:
            raise ValueError(
                f"method and retain term take hidden states of different layers {named}; give both the same"
            )
        return named.pop() if named else None


@dataclass(frozen=True)
class References:
    """What is known of the reference.

    Attributes:
        logps: (n forget rows,) summed answer log-probs, where the method needs them.
        alternative_logps: (n forget rows,) those of the alternatives, where it needs these too.
        model: a frozen copy, for full fine-tuning with a loss that runs the reference every step.
    """

    logps: Tensor | None = None
    alternative_logps: Tensor | None = None
    model: nn.Module | None = None


class UnlearningTrainer(Resumable, Trainer):
    """A ``transformers.Trainer`` whose batches are pairs and whose loss is an ``Objective``.

    Means are over examples, so that 1 × 8 rows, 8 × 1 accumulated and 2 processes × 4 give the same update.

    Args:
        model: with its adapter on, or in full.
        args: training arguments.
        dataset: the run's pairs, in order.
        objective: what is minimised.
        pad_token_id: what pads a batch.
        reference: what is known of the reference.
        wrappers: what changes the gradient, in order.
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
        reference: References | None = None,
        wrappers: Sequence[Wrapper] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            data_collator=PairCollator(pad_token_id, objective.needs[0].alternative),
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # progress is shown by our own bar
        self.add_callback(FrozenStaysFrozen())
        self.objective = objective
        self.reference = reference or References()
        self.wrappers = wrappers
        self._split: SplitStep | None = None
        self.non_finite_at: int | None = None
        self._terms: dict[str, list[Tensor]] = defaultdict(list)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the pairs is the schedule's; accelerate gives each process its slice of it."""
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """As the Trainer's, with the wrappers in force."""
        with ExitStack() as stack:
            for wrapper in self.wrappers:
                stack.enter_context(wrapper.during(model))
            if not any(wrapper.splits_gradient for wrapper in self.wrappers):
                return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-any-return]
            return self._split_step(model, self._prepare_inputs(inputs))

    def _split_step(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """One micro-batch with both gradients apart; the last of a step leaves their sum for the optimiser."""
        model.train()
        goal = self.objective
        if self._split is None:
            bare = self.accelerator.unwrap_model(model)
            halves = {True: replace(goal, retain=None), False: replace(goal, method=None)}

            def terms_of(inputs: dict[str, Tensor], of_forget: bool) -> dict[str, Tensor]:
                with self.compute_loss_context_manager():
                    return self._loss_terms(bare, inputs, halves[of_forget])

            self._split = SplitStep(
                self.wrappers,
                terms_of,
                [value for value in bare.parameters() if value.requires_grad],
                lambda value: self.accelerator.reduce(value, reduction="mean"),
                self.args.gradient_accumulation_steps,
                goal.retain is not None,
            )
        terms = self._split.add(inputs)
        if "retain_loss" in terms:
            terms["loss"] = terms["loss"] + goal.retain_weight * terms["retain_loss"]
        if self.accelerator.sync_gradients:
            step = self._split.finish(goal.retain_weight)
            terms["retain_weight"] = torch.tensor(step.retain_weight, device=terms["loss"].device)
        self._keep(terms)
        loss: Tensor = terms["loss"] / self.args.gradient_accumulation_steps
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """γ · mean forget loss + α · mean retain loss of one micro-batch."""
        terms = self._loss_terms(model, inputs, self.objective)
        self._keep(terms)
        loss = terms["loss"]
        return (loss, {}) if return_outputs else loss

    def _keep(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._terms[name].append(value.detach())

    def _loss_terms(self, model: nn.Module, inputs: dict[str, Tensor], goal: Objective) -> dict[str, Tensor]:
        """One forward of the rows that the goal looks at, and its losses."""
        count = len(inputs["forget_index"])
        forget_needs, retain_needs = self.objective.needs
        # forget rows, then their alternatives where those are scored, then retain rows
        first_retain = count * (2 if forget_needs.alternative else 1)
        rows = slice(0 if goal.method else first_retain, None if goal.retain else first_retain)
        batch = {name: inputs[name][rows] for name in ("input_ids", "attention_mask", "answer_mask")}
        parts: dict[str, Part] = {}
        if goal.method is not None:
            parts["forget"] = Part(slice(0, count), forget_needs.logits, forget_needs.hidden)
            if forget_needs.alternative:
                parts["alternative"] = Part(slice(count, first_retain))
        if goal.retain is not None:
            parts["retain"] = Part(slice(first_retain - rows.start, None), retain_needs.logits, retain_needs.hidden)
        layer = hidden_layer(model, goal.layer) if any(part.hidden for part in parts.values()) else None
        scores = dict(zip(parts, score_parts(model, batch, list(parts.values()), layer=layer), strict=True))

        terms: dict[str, Tensor] = {}
        total = next(iter(scores.values())).token_logps.new_zeros(())
        if goal.method is not None:
            forget = self._with_reference(model, batch, parts["forget"], scores["forget"], forget_needs, layer)
            forget = replace(forget, alternative=scores.get("alternative"))
            forget = self._with_known(forget, forget_needs, goal.method, inputs)
            terms["forget_loss"], terms["forget_probability"] = self._forget_loss(goal.method, forget)
            total = total + goal.forget_weight * terms["forget_loss"]
        if goal.retain is not None:
            kept = self._with_reference(model, batch, parts["retain"], scores["retain"], retain_needs, layer)
            terms["retain_loss"] = goal.retain.retain_loss(kept).mean()
            total = total + goal.retain_weight * terms["retain_loss"]
        return {**terms, "loss": total}

    def _forget_loss(self, method: Method, forget: AnswerScores) -> tuple[Tensor, Tensor]:
        losses = method.forget_loss(forget)
        probability = forget.mean_logps.detach().exp()
        if self.objective.satisfied_below is not None:
            losses = losses * (probability > self.objective.satisfied_below)
        return losses.mean(), probability.mean()

    def _with_known(
        self, forget: AnswerScores, needs: Needs, method: Method, inputs: dict[str, Tensor]
    ) -> AnswerScores:
        """Add what was computed before training: the reference's log-probs, and the alternatives' tokens."""
        if needs.alternative_tokens:
            forget = replace(forget, alternative_tokens=inputs.get("alternative_tokens"))
        if not needs.reference_logps:
            return forget
        index, device = inputs["forget_index"], forget.token_logps.device
        if self.reference.logps is None:
            raise ValueError(f"{type(method).__name__} needs reference log-probs, and none were computed")
        forget = replace(forget, reference_logps=self.reference.logps.to(device)[index])
        if forget.alternative is not None and self.reference.alternative_logps is not None:
            known = self.reference.alternative_logps.to(device)[index]
            forget = replace(forget, alternative=replace(forget.alternative, reference_logps=known))
        return forget

    def _with_reference(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        part: Part,
        scores: AnswerScores,
        needs: Needs,
        layer: int | None,
    ) -> AnswerScores:
        """Add what the reference says of the same rows, if that is needed: a forward of these rows alone."""
        if not needs.reference_forward:
            return scores
        rows = {name: value[part.rows] for name, value in batch.items()}
        wanted = Part(slice(None), needs.reference_logits, needs.reference_hidden)
        theirs = self._score_reference(model, rows, wanted, layer if needs.reference_hidden else None)
        return replace(scores, reference_logits=theirs.logits, reference_hidden=theirs.hidden)

    @torch.no_grad()
    def _score_reference(
        self, model: nn.Module, batch: dict[str, Tensor], part: Part, layer: int | None = None
    ) -> AnswerScores:
        """The reference's scores: the adapter switched off, or the frozen copy; always without dropout."""
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
