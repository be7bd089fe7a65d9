"""Kill the workers of a search at random, and check that no trial is lost and none is counted or run twice.

    python scripts/search_kills.py --workers 50 --trials 100 --kills 100 --seed 0

A trial here sleeps for a moment instead of training; three of four go on sleeping until all kills are spent, so that a quick
machine is not done before. Killed workers are replaced until then; the rest finish.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.trials.slots import Result, Slots, slot_of
from llm_forget.trials.worker import Ask, work


class Sleeper:
    """A trial that takes a moment, and notes if somebody else runs the same one."""

    def __init__(self, seed: int, killing: Path) -> None:
        self._random = random.Random(seed)
        self._killing = killing

    def draw(self, trial: Any) -> object:
        """Two parameters."""
        trial.suggest_categorical("method", ("a", "b"))
        return trial.suggest_float("x", 0, 1)

    def key(self, params: Mapping[str, Any]) -> object:
        """Its parameters."""
        return dict(params)

    def run(self, params: Mapping[str, Any], place: Path, ask: Ask) -> Result:
        """Hold a lock of the trial for up to 40 ms, or as long as workers are killed."""
        with place.with_name(f"{place.name}.held").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                place.with_name(f"{place.name}.doubled").touch()
            ask(0, params["x"], 1 - params["x"])
            time.sleep(self._random.random() * 0.04)
            stays = self._random.random() < 3 / 4
            while stays and self._killing.exists():
                time.sleep(0.005)
        return Result(params["x"], 1 - params["x"], {"floor": -1.0})


def _worker(folder: Path, budget: int, number: int) -> None:
    work(Slots(folder, worker=number, budget=budget), Sleeper(number, folder / "killing"))


def killed_search(folder: Path, *, workers: int, trials: int, kills: int, seed: int, patience: float = 300) -> Slots:
    """Run a search whose workers are killed at random.

    Returns:
        The search, complete.

    Raises:
        TimeoutError: it did not finish.
    """
    context, chance = multiprocessing.get_context("fork"), random.Random(seed)
    Slots(folder, budget=trials)
    killing = folder / "killing"
    killing.touch()
    started = 0

    def start() -> Any:
        nonlocal started
        started += 1
        process = context.Process(target=_worker, args=(folder, trials, started), daemon=True)
        process.start()
        return process

    running = [start() for _ in range(workers)]
    until = time.monotonic() + patience
    while kills:
        time.sleep(chance.random() * 0.05)
        victim = _victim(folder, [one.pid for one in running], chance)
        if victim is None:  # nobody has begun a trial yet
            if time.monotonic() > until or all(not one.is_alive() for one in running):
                break
            continue
        os.kill(running[victim].pid, signal.SIGKILL)
        running[victim].join()
        running[victim] = start()
        kills -= 1
    killing.unlink()
    for one in running:
        one.join(max(0.0, until - time.monotonic()))
        if one.is_alive():
            for other in running:
                other.kill()
            raise TimeoutError(f"the search was not complete after {patience:.0f} s")
    return Slots(folder, budget=trials)


def _victim(folder: Path, workers: list[int], chance: random.Random) -> int | None:
    """A worker in the middle of a trial, or one time in three any; None if none is in one."""
    held = []
    for file in folder.glob("held/.*.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            held.append(json.loads(file.read_text(encoding="utf-8"))["pid"])
    busy = [place for place, pid in enumerate(workers) if pid in held]
    if not busy:
        return None
    return chance.choice(busy) if chance.random() < 2 / 3 else chance.randrange(len(workers))


def problems(slots: Slots) -> list[str]:
    """What was lost or doubled."""
    from optuna.trial import TrialState

    done = Counter(slot_of(one) for one in slots.study.trials if one.state == TrialState.COMPLETE)
    found = [f"slot {slot} counted {times} times" for slot, times in done.items() if times > 1]
    if len(done) != slots.budget:
        found.append(f"{len(done)} trials instead of {slots.budget}")
    left = [one.number for one in slots.study.trials if not one.state.is_finished()]
    found += [f"trial {number} never ended" for number in left]
    found += [f"{path.stem} was run twice at once" for path in slots.folder.rglob("*.doubled")]
    return found


def main(argv: list[str]) -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        slots = killed_search(Path(folder) / "search", **vars(options))
        attempts, found = len(slots.study.trials), problems(slots)
    print(
        f"{options.workers} workers, {options.kills} killed, {options.trials} trials in {attempts} attempts, "
        f"{time.monotonic() - began:.0f} s: {'; '.join(found) or 'none lost, none doubled'}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
