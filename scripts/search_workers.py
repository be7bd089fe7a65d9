"""Compare the fronts that one worker and several find, over many searches whose trials are a formula.

    python scripts/search_workers.py --workers 1 2 4 --searches 12 --trials 40

The workers claim trials as those of `llm-forget search` do, from the same kind of space. A trial takes a random time on a
simulated clock. So the rows of the table differ only in what is known when a trial is drawn.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llm_forget.trials.front import hypervolume
from llm_forget.trials.slots import Claim, Result, Slots

_METHODS = {"good": 0.0, "fair": 0.12, "slow": 0.2, **{f"poor{place}": 0.45 + 0.03 * place for place in range(9)}}
_RANKS, _STEPS, _SHARES = (4, 8, 16, 32, 64, 128), (0.5, 1.0, 2.0), (1.0, 0.5, 0.25)
_WRAPPERS = {"none": 1.0, "gru": 0.6, "sam": 0.3}
_FIRST = {"method": "good", "wrapper": "none", "weight": 0.5, "rank": 32, "blocks": 1.0, "steps": 1.0, "rate": 1.0}
_NOISE = (0.02, 0.004)  # of distance and harm
_HARMFUL = 0.2  # harm at which a run is rolled back to its start
_CORNER = (1.0, 1.0)


def draw(trial: Any) -> object:
    """Suggest every parameter."""
    trial.suggest_categorical("method", tuple(_METHODS))
    trial.suggest_categorical("wrapper", tuple(_WRAPPERS))
    trial.suggest_float("weight", 0.5, 16.0, log=True)
    trial.suggest_categorical("rank", _RANKS)
    trial.suggest_categorical("blocks", _SHARES)
    trial.suggest_categorical("steps", _STEPS)
    return trial.suggest_float("rate", 0.25, 4.0, log=True)


def outcome(params: dict[str, Any], chance: random.Random) -> Result:
    """Distance falls and harm rises with the strength of a run; poor methods stay far, and too strong runs are rolled back."""
    size = math.log2(params["rank"] / 4) / 5
    speed = math.log(params["rate"] * 4, 16)
    length = (math.log2(params["steps"]) + 1) / 2
    strength = (0.5 * size + 0.3 * speed + 0.2 * length) * _WRAPPERS[params["wrapper"]] * (0.4 + 0.6 * params["blocks"])
    far = _METHODS[params["method"]]
    distance = 1 - (1 - far) * (0.45 + 0.55 * strength)
    harm = 0.02 + 0.12 * strength**2 + 0.1 * max(0.0, speed - 0.5) ** 2 + 0.02 * far
    if harm > _HARMFUL or params["wrapper"] == "sam":
        distance, harm = 1.0, 0.0
    distance, harm = (
        max(0.0, one + chance.gauss(0, noise)) for one, noise in zip((distance, harm), _NOISE, strict=True)
    )
    return Result(distance, harm, {"retain": harm - 0.1})


def area(workers: int, trials: int, seed: int) -> float:
    """The area that a search with so many workers dominates."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        slots = Slots(Path(folder), seed=seed, worker=0, budget=trials)
        slots.enqueue([_FIRST])
        busy: list[tuple[float, int, ExitStack, Claim]] = []
        now = 0.0
        while not slots.complete:
            while len(busy) < workers:
                stack = ExitStack()
                claim = stack.enter_context(slots.claimed(draw))
                if claim is None:
                    break
                heapq.heappush(busy, (now + chance.uniform(0.5, 2.0), claim.slot, stack, claim))
            now, _, stack, claim = heapq.heappop(busy)
            slots.finish(claim, outcome(dict(claim.trial.params), chance))
            stack.close()
        found = [(one.values[0], one.values[1]) for one in slots.finished().values()]
    return hypervolume(found, _CORNER)


def main() -> None:
    """Parse the options, run the searches, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--searches", type=int, default=12)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    first = hypervolume([(one.distance, one.harm) for one in [outcome(dict(_FIRST), random.Random(0))]], _CORNER)
    print(f"the first trial alone dominates {first:.3f}")
    print("\n| workers | dominated area, mean | standard deviation |\n|---:|---:|---:|")
    for workers in options.workers:
        found = [area(workers, options.trials, seed) for seed in range(options.searches)]
        print(f"| {workers} | {statistics.mean(found):.3f} | {statistics.stdev(found):.3f} |", flush=True)


if __name__ == "__main__":
    main()
