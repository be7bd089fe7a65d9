"""The training session of adapter subtraction: train towards the forget set, subtract, heal, measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch import Tensor

from llm_forget.adapters.lora import Factors
from llm_forget.adapters.projection import deficiency
from llm_forget.config import TrainConfig
from llm_forget.data.schedule import schedule
from llm_forget.errors import RecipeError
from llm_forget.model.weights import put, trainable_state, whole
from llm_forget.retain.nll import NLL
from llm_forget.stop import Measurement, Verdict
from llm_forget.train.callbacks import StopCallback
from llm_forget.train.exchange import base_in_place
from llm_forget.train.objective import Objective

if TYPE_CHECKING:
    from llm_forget.train.run import Run


class AdapterSession:
    """Implements ``methods.adapter_subtraction.Session`` for a run.

    Args:
        run: the run whose adapter is subtracted.
        stopping: judges each state and keeps the best one.
    """

    def __init__(self, run: Run, stopping: StopCallback) -> None:
        self._run, self._stopping = run, stopping
        self.target, self.floor = run.target, run.floor
        train = run.recipe.train
        self._batch: int = train.batch_size * train.gradient_accumulation * PartialState().num_processes
        self._forget = run.pairs()
        self._retain = self._retain_rows()
        self._before: dict[str, Tensor] = {}
        self._change: dict[str, Tensor] = {}

    @property
    def steps(self) -> int:
        """The number of steps towards the forget set, from the recipe."""
        return len(self._forget) // self._batch

    def train_towards(self, steps: int) -> None:
        """Train the next steps towards the forget set. A is frozen, so the weight change is linear in the change of B."""
        pairs, self._forget = self._forget[: steps * self._batch], self._forget[steps * self._batch :]
        self._before = self._lora_b()
        # further retain terms are for the healing
        self._change = self._learned(replace(self._run.objective(), more=()), pairs, "towards")

    def train_from_base(self, steps: int) -> None:
        """Take the next steps on the base's weights, and as many on retain rows, both from an adapter without effect.

        The change is the first less the second. The state before comes back.
        """
        if self._run.open_base is None:
            raise RecipeError(
                "method adapter_subtraction: start is base, and there is none; set base to its folder or hub id"
            )
        pairs, self._forget = self._forget[: steps * self._batch], self._forget[steps * self._batch :]
        self._before = self._lora_b()
        try:
            with base_in_place(self._run.model, self._run.open_base):
                nothing = {name: torch.zeros_like(value) for name, value in self._before.items()}
                self._put(nothing)
                self._change = self._learned(replace(self._run.objective(), more=()), pairs, "on the base")
                if self._run.sets.retain:
                    self._put(nothing)
                    kept = self._learned(self._kept, self._retain_pairs(steps), "retain rows on the base")
                    self._change = {name: change - kept[name] for name, change in self._change.items()}
        finally:
            self._put(self._before)

    def leave_shared(self, steps: int) -> None:
        """Apply Ext-Sub's projection to the change, relative to the change by ``steps`` steps on retain rows.

        Both start from the same weights and change B with the same A, so the projection keeps the rank.
        """
        self.set_strength(0.0)
        kept = self._learned(self._kept, self._retain_pairs(steps), "retain direction")
        weights = dict(self._run.model.named_parameters())
        for name, change in self._change.items():
            a = whole(weights[name.replace("lora_B", "lora_A")]).detach().float().cpu()  # like the changes
            part = deficiency(Factors(a, change.float(), 1.0), Factors(a, kept[name].float(), 1.0))
            self._change[name] = part.B.to(change)

    def _learned(self, objective: Objective, pairs: list[tuple[int, int | None]], label: str) -> dict[str, Tensor]:
        """Train with A frozen, and return the change of B."""
        run, before = self._run, self._lora_b()
        fixed = [value for name, value in run.model.named_parameters() if value.requires_grad and "lora_B" not in name]
        for value in fixed:
            value.requires_grad_(False)
        try:
            self._train(objective, pairs, label, replace(run.recipe.train, schedule="constant"))
        finally:
            for value in fixed:
                value.requires_grad_(True)
        return {name: value - before[name] for name, value in self._lora_b().items()}

    @property
    def _kept(self) -> Objective:
        return Objective(method=None, retain=NLL())

    def set_strength(self, strength: float) -> None:
        """Set B to its start value − strength · change, in fp32."""
        self._put({name: self._before[name] - strength * change for name, change in self._change.items()})

    def _put(self, state: dict[str, Tensor]) -> None:
        for name, value in self._run.model.named_parameters():
            if name in state:
                put(value, state[name])

    def measure(self) -> Measurement:
        """Measure both samples and show the result."""
        now = self._run.meter(self._run.model, self._run.steps)
        self._run.report(now, Verdict.GO_ON)
        return now

    def heal(self, steps: int, learning_rate: float | None) -> None:
        """Train only on the rows to keep, for ``steps`` steps."""
        train = replace(self._run.recipe.train, learning_rate=learning_rate or self._run.recipe.train.learning_rate)
        more = self._run.more
        weight = self._run.recipe.retain.weight if more else 1.0
        objective = Objective(method=None, retain=NLL(), retain_weight=weight, more=more)
        self._train(objective, self._retain_pairs(steps), "healing", train)

    def settled(self, now: Measurement) -> bool:
        """Judge a state and keep it if it is the best so far. Returns whether the run should end."""
        return self._stopping.judge(self._run.model, now)

    def _train(self, objective: Objective, pairs: list[tuple[int, int | None]], label: str, train: TrainConfig) -> None:
        self._run.metrics.phase = label
        trainer = self._run.train(objective, pairs, label, train=train)
        if trainer.non_finite_at is not None:
            raise RecipeError(
                f"the gradient was not finite at step {trainer.non_finite_at} of {label}; lower train.learning_rate"
            )

    def _retain_pairs(self, steps: int) -> list[tuple[int, int | None]]:
        # these steps ignore the forget row of a pair; the shortest one keeps the padding small
        lengths = [len(row.input_ids) for row in self._run.sets.forget]
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        return [(shortest, next(self._retain)) for _ in range(steps * self._batch)]

    def _lora_b(self) -> dict[str, Tensor]:
        return {name: value for name, value in trainable_state(self._run.model).items() if "lora_B" in name}

    def _retain_rows(self) -> Iterator[int]:
        """An endless iterator over the indices of retain rows, with one permutation per epoch."""
        rows, kept, seed = self._run.sets.retain, self._run.kept, self._run.recipe.seed
        lengths = [len(rows[index].input_ids) for index in kept]
        while lengths:
            seed += 1
            for index, _ in schedule(lengths, [], batch=self._batch, epochs=1, seed=seed):
                yield kept[index]
