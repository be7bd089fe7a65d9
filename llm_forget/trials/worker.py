"""A worker: claims trials one after another, and runs each in a process of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_forget.trials.front import dominators
from llm_forget.trials.near import ran_to_its_end
from llm_forget.trials.slots import Claim, Result, Slots

_FEWEST = 3  # other trials at a rung before one is ended there
_SHARE = 1 / 3  # of them that are better in both objectives
_ATTEMPTS = 3  # of a slot whose process dies
_POLL = 1.0
Ask = Callable[[int, float, float], bool]


class Runner(Protocol):
    """Runs one trial."""

    def draw(self, trial: Any) -> object:
        """Suggest every parameter of an Optuna trial."""

    def key(self, params: Mapping[str, Any]) -> object:
        """What distinguishes its run from those with other parameters."""

    def run(self, params: Mapping[str, Any], place: Path, ask: Ask) -> Result | None:
        """Run it in ``place``; None if it was interrupted. ``ask(rung, distance, harm)`` says whether to go on."""


def work(
    slots: Slots, runner: Runner, *, until: float | None = None, say: Callable[[str], None] = lambda _: None
) -> bool:
    """Run trials until the budget is spent, or the time.

    Args:
        slots: the search.
        runner: runs a trial.
        until: ``time.time()`` after which no trial is started; None for no limit.
        say: called with a line for every trial.

    Returns:
        Whether every slot is finished; False if the time was up, or a trial was interrupted.
    """
    while True:
        if until is not None and time.time() >= until:
            return slots.complete
        with slots.claimed(runner.draw, runner.key) as claim:
            if claim is not None:
                result = runner.run(claim.trial.params, slots.place(claim.slot), _asker(slots, claim))
                if result is None:
                    slots.give_back(claim)
                    return False
                if result.failed is not None and result.failed.startswith(DIED) and claim.attempt < _ATTEMPTS:
                    slots.give_back(claim)
                elif slots.finish(claim, result):
                    say(line_of(claim.slot, claim.trial.params, result))
                continue
        if slots.complete:
            return True
        time.sleep(_POLL)  # another worker holds the last trials, and may die


DIED = "its process died"


def _asker(slots: Slots, claim: Claim) -> Ask:
    """Note a trial's rung, and decide whether it goes on: not if a third of the others are better in both objectives.

    A trial that had reached its end before counts as it was then, so that slow trials are compared with quick ones.
    """

    def ask(rung: int, distance: float, harm: float) -> bool:
        name = f"rung_{rung}"
        others = [
            tuple(one.user_attrs[name]) if name in one.user_attrs else (one.values[0], one.values[1])
            for slot, one in slots.finished().items()
            if slot != claim.slot and (name in one.user_attrs or ran_to_its_end(one))
        ]
        claim.trial.set_user_attr(name, [distance, harm])
        better = dominators((distance, harm), others)
        return len(others) < _FEWEST or better < _SHARE * len(others)

    return ask


def line_of(slot: int, params: Mapping[str, Any], result: Result) -> str:
    """A finished trial in one line."""
    if result.failed is not None:
        return f"{slot:04d} {params.get('method', '')}: {result.failed}"
    broken = [name for name, value in result.broken.items() if value > 0]
    floors = f"; below the floor of {', '.join(broken)}" if broken else ""
    pruned = f"; ended at step {result.details['pruned_at']}" if "pruned_at" in result.details else ""
    return (
        f"{slot:04d} {params.get('method', '')}: distance {result.distance:.2f}, harm {result.harm:.2f}{floors}{pruned}"
    )


@dataclass
class InProcess:
    """Runs a function in a process of its own, started from a clean server so that no thread or device is inherited.

    Attributes:
        function: called with what it gets and its end of a connection; it sends ("rung", …) and waits for an answer, and at last
            ("result", Result) or ("interrupted", None).
        preload: modules that the server imports once for all processes.
    """

    function: Callable[..., None]
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        if self.preload and "forkserver" in kinds:
            self._context.set_forkserver_preload(list(self.preload))

    def __call__(self, given: Any, ask: Ask) -> Result | None:
        """Run it, and answer its questions."""
        ours, theirs = self._context.Pipe()
        # As bytes: torch hands over each tensor as a file descriptor of its own, and a process may send 250 of them.
        process = self._context.Process(target=_called, args=(self.function, pickle.dumps(given), theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            while True:
                kind, value = ours.recv()
                if kind == "rung":
                    ours.send(ask(*value))
                    continue
                found: Result | None = value
                return found
        except EOFError:
            process.join()
            return Result(failed=f"{DIED} with status {process.exitcode}")
        finally:
            ours.close()
            process.join()


def _called(function: Callable[..., None], given: bytes, worker: Any) -> None:
    """Call it with what this program sent to its own process."""
    function(pickle.loads(given), worker)
