"""Trials that outlive their workers: a slot is one setting to try, and is finished once, by however many attempts.

A worker that is killed leaves a running trial. Under one lock, whoever claims next gives its slot to a new attempt with the same
settings. Over a database without a shared lock, the same rules hold after the fact: the first living attempt of a slot counts,
and slots beyond the budget are dropped, before they cost anything.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, fail_stale_trials
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, Trial, TrialState

from llm_forget.trials.journal import is_locked, open_storage, quiet, waiting_lock
from llm_forget.trials.near import SHARE, near_front
from llm_forget.utils.lock import locked

OBJECTIVES = ("distance", "harm")
_OF, _WHY = "slot", "why"
_HELD = "held"
_STARTUP = 10  # random trials before the sampler models anything


@dataclass
class Result:
    """What a trial found.

    Attributes:
        distance: of log-probs and entropies to those of the oracle or of the row targets, in nats per answer token.
        harm: share of probability lost on what is to be kept, the largest over its sets.
        broken: floor → by how much it is broken; at most 0 where it holds.
        details: numbers and names for tables.
        failed: why there is nothing to count; None for a trial that ran.
    """

    distance: float = 0.0
    harm: float = 0.0
    broken: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Claim:
    """An attempt that this worker holds.

    Attributes:
        trial: Optuna's trial.
        slot: the number of the slot's first trial, which names its folder.
        attempt: 1 for the first.
    """

    trial: Trial
    slot: int
    attempt: int


class Slots:
    """The trials of one search.

    Args:
        folder: the search's folder.
        url: a database; None for the folder's journal.
        seed: of the sampler.
        worker: number of this worker, so that each draws its own sequence; None for a random one.
        budget: number of slots.
    """

    def __init__(
        self, folder: Path, *, url: str | None = None, seed: int = 0, worker: int | None = None, budget: int = 40
    ) -> None:
        quiet()
        for name in ("trials", _HELD):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.folder, self.budget, self._shared = folder, budget, url is None
        self._storage: BaseStorage = open_storage(folder, url)
        with self._lock():
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=folder.resolve().name if url is not None else "search",
                directions=["minimize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            # a worker that goes on must not draw again what it drew before
            drawn = random.Random(
                f"{seed} {secrets.token_hex(8) if worker is None else worker} {len(self.study.trials)}"
            )
            self._chance = random.Random(drawn.randrange(2**31))
            self.study.sampler = optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, n_startup_trials=_STARTUP, seed=drawn.randrange(2**31)
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with waiting_lock(self.folder / "claims"):
            yield

    def enqueue(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Settings to try first; only if there is no trial yet."""
        with self._lock():
            if not self.study.get_trials(deepcopy=False):
                for one in settings:
                    self.study.enqueue_trial(dict(one))

    @contextmanager
    def claimed(
        self, draw: Callable[[Trial], object], key: Callable[[Mapping[str, Any]], object] = dict
    ) -> Iterator[Claim | None]:
        """The next attempt, held for as long as the context lasts; None if there is nothing to start now.

        Args:
            draw: suggests every parameter of a trial, so that an attempt that is killed leaves all of them.
            key: settings → what distinguishes runs (``near.near_front``).
        """
        with ExitStack() as held:
            with self._lock():
                self._recover()
                claim = self._next(key)
                if claim is not None:
                    held.enter_context(locked(self._lock_of(claim.slot), "the trial"))
                    draw(claim.trial)
            if claim is not None:
                held.enter_context(get_heartbeat_thread(claim.trial._trial_id, self._storage))
            yield claim

    def place(self, slot: int) -> Path:
        """The run folder of a slot."""
        return self.folder / "trials" / f"{slot:04d}"

    def _lock_of(self, slot: int) -> Path:
        """What a worker locks while it has an attempt; its process locks the run folder itself."""
        return self.folder / _HELD / f"{slot:04d}"

    def finish(self, claim: Claim, result: Result) -> bool:
        """Record what an attempt found; False if another attempt had taken its place."""
        trial = claim.trial
        try:
            for name, value in result.details.items():
                trial.set_user_attr(name, value)
            if result.failed is not None:
                trial.set_user_attr(_WHY, result.failed)
                self.study.tell(trial, state=TrialState.FAIL)
                return True
            for name, value in result.broken.items():
                trial.set_constraint(name, value)
            self.study.tell(trial, [result.distance, result.harm])
        except (UpdateFinishedTrialError, ValueError):
            return False
        return True

    def give_back(self, claim: Claim) -> None:
        """End an attempt that was interrupted; its slot is tried again."""
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):
            self.study.tell(claim.trial, state=TrialState.FAIL)

    def finished(self) -> dict[int, FrozenTrial]:
        """Slot → the trial that finished it, with values or with a reason for having none."""
        found: dict[int, FrozenTrial] = {}
        for slot, attempts in self._by_slot().items():
            done = [one for one in attempts if _is_final(one)]
            if done:
                found[slot] = done[0]
        return found

    @property
    def complete(self) -> bool:
        """Whether every slot of the budget is finished."""
        return len(self.finished()) >= self.budget

    def _by_slot(self) -> dict[int, list[FrozenTrial]]:
        """Slot → its attempts, for the slots within the budget."""
        found: dict[int, list[FrozenTrial]] = {}
        for one in self.study.get_trials(deepcopy=False):
            found.setdefault(slot_of(one), []).append(one)
        return dict(sorted(found.items())[: self.budget])

    def _recover(self) -> None:
        """End the attempts of dead workers, and give a new attempt to every slot that has no living one."""
        if self._shared:
            for one in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not is_locked(self._lock_of(slot_of(one))):
                    with contextlib.suppress(UpdateFinishedTrialError):
                        self._storage.set_trial_state_values(one._trial_id, TrialState.FAIL)
        else:
            fail_stale_trials(self.study)
        for slot, attempts in self._by_slot().items():
            if all(one.state == TrialState.FAIL and not _is_final(one) for one in attempts):
                known = max(attempts, key=lambda one: len(one.params))
                params = known.params or known.system_attrs.get("fixed_params", {})
                self.study.enqueue_trial(dict(params), user_attrs={_OF: slot})

    def _next(self, key: Callable[[Mapping[str, Any]], object]) -> Claim | None:
        """A waiting attempt, or the first one of a new slot within the budget."""
        while True:
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting and len(self._by_slot()) >= self.budget:
                return None
            if not waiting and self._chance.random() < SHARE:
                settings = near_front(self.study.get_trials(deepcopy=False), self._chance, key)
                if settings is not None:
                    self.study.enqueue_trial(settings)
            trial = self.study.ask()
            slot, found = slot_of(_frozen(trial)), self._by_slot()
            attempts = found.get(slot)
            if attempts is None:  # another worker filled the budget meanwhile
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            living = [one.number for one in attempts if one.state != TrialState.FAIL or _is_final(one)]
            if living and min(living) < trial.number:  # another worker gave this slot a new attempt first
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            return Claim(trial, slot, len(attempts))


def slot_of(trial: FrozenTrial) -> int:
    """The slot of a trial."""
    return int(trial.user_attrs.get(_OF, trial.number))


def why_failed(trial: FrozenTrial) -> str | None:
    """Why a trial has no values; None if it has."""
    found = trial.user_attrs.get(_WHY)
    return None if found is None else str(found)


def _is_final(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and _WHY in trial.user_attrs)


def _frozen(trial: Trial) -> FrozenTrial:
    return trial.storage.get_trial(trial._trial_id)
