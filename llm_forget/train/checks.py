"""The guard of a run: measures both sets every few steps, remembers the best state, and ends the run by the stop rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from llm_forget.data.encode import Encoded
from llm_forget.model.measure import answer_logps
from llm_forget.model.weights import restore_trainable, trainable_state
from llm_forget.stop import Measurement, StopRule, Verdict


class Gauge:
    """Measures a model on a fixed sample of the forget set and of the rows that must stay.

    Args:
        forget: rows to forget.
        retain: validation rows, or none.
        pad_token_id: what pads a batch.
    """

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded], pad_token_id: int) -> None:
        self.forget, self.retain, self.pad_token_id = forget, retain, pad_token_id

    def __call__(self, model: Any, step: int) -> Measurement:
        """Mean answer probability of both samples, after so many steps."""
        forget = float(self.probabilities(model, self.forget).mean())
        retain = float(self.probabilities(model, self.retain).mean()) if self.retain else None
        return Measurement(step, forget, retain)

    def probabilities(self, model: Any, rows: Sequence[Encoded]) -> Tensor:
        """exp(mean answer log-prob) of each row, (n,)."""
        return answer_logps(model, rows, self.pad_token_id)[1]


class Checks(TrainerCallback):
    """Applies a stop rule while the Trainer trains.

    Args:
        gauge: measures the model.
        rule: judges.
        every: steps between checks.
        report: told of every measurement.
    """

    def __init__(
        self, gauge: Gauge, rule: StopRule, every: int, report: Callable[[Measurement, Verdict], None] = lambda *_: None
    ) -> None:
        self.gauge, self.rule, self.every, self.report = gauge, rule, every, report
        self.best_state: dict[str, Tensor] | None = None
        self.ended_by: Verdict | None = None

    def begin(self, model: Any, start: Measurement) -> None:
        """Take the state before the first step, which is always good enough to go back to."""
        self.rule.judge(start)
        self.best_state = trainable_state(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check after every few steps, and after the last."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        unwrapped = getattr(model, "module", model)
        now = self.gauge(unwrapped, state.global_step)
        verdict = self._judge(unwrapped, now)
        self.report(now, verdict)
        control.should_training_stop |= self.ended_by is not None

    def judge(self, model: Any, now: Measurement) -> bool:
        """Judge a measurement that was taken elsewhere; True when the run is to end."""
        self._judge(model, now)
        return self.ended_by is not None

    def _judge(self, model: Any, now: Measurement) -> Verdict:
        verdict = self.rule.judge(now)
        if verdict in (Verdict.KEEP, Verdict.REACHED):
            self.best_state = trainable_state(model)
        if verdict in (Verdict.REACHED, Verdict.BROKEN):
            self.ended_by = verdict
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """The rule's memory and the best state so far, for a checkpoint."""
        ended_by = None if self.ended_by is None else self.ended_by.name
        return {"rule": self.rule.state_dict(), "best_state": self.best_state, "ended_by": ended_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.rule.load_state_dict(state["rule"])
        self.best_state = state["best_state"]
        self.ended_by = None if state["ended_by"] is None else Verdict[state["ended_by"]]

    def settle(self, model: Any, non_finite_at: int | None) -> str:
        """Leave the model in the best state, and say in a sentence why the run ended and what was kept."""
        if self.best_state is None or self.rule.best is None:
            raise RuntimeError("settle() before begin()")
        if self.ended_by is Verdict.REACHED:
            return f"forget target reached at step {self.rule.best.step}"
        why = "the last step was reached"
        if non_finite_at is not None:
            why = f"the gradient was not finite at step {non_finite_at} (a lower learning rate helps)"
        elif self.ended_by is Verdict.BROKEN:
            why = f"the utility floor was broken and did not recover over {self.rule.patience} checks"
        restore_trainable(model, self.best_state)
        hint = self._what_lay_below()
        if self.rule.best.step == 0:
            return f"{why}; no later state was better above the floor than the start, so nothing is changed{hint}"
        return f"{why}; kept the best state above the floor, from step {self.rule.best.step}{hint}"

    def _what_lay_below(self) -> str:
        """A state that had forgotten more and was passed over for the floor, with what a person may do about it."""
        beyond = self.rule.passed_over()
        if beyond is None:
            return ""
        return (
            f". Step {beyond.step} had forgotten more ({beyond.forget:.3f}) with retain at {beyond.retain:.3f}, below the floor "
            f"of {self.rule.floor:.3f}: more train.epochs let a retain term win that back, a lower stop.utility_floor takes it"
        )
