"""Twenty requests on invented people, forgotten by two processes at once that are killed at random moments.

python scripts/ledger_kills.py FOLDER [--kills 20] [--seed 0]

After each kill the ledger must be consistent, and nothing may be lost. In the end each request must be answered once. It must be
forgotten by one batch, or by another one after it came back. The exit status is 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr
from datetime import date
from pathlib import Path

from resurrection import Size, make_world, recipe
from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.data.examples import DataSource
from llm_forget.errors import UserError
from llm_forget.requests import batches
from llm_forget.requests.forgetting import Workshop, forget_batch
from llm_forget.requests.ledger import Ledger

PORTION = 4  # most requests in a batch
SIZE = Size(requests=20, hidden=32, layers=1, epochs=20)  # it need not know the rows well


def work(folder: Path, rules: UnlearnRecipe, seed: int) -> None:
    """Add, batch, forget and answer until all requests are answered. What another process does meanwhile is left to it."""
    ledger, draw = Ledger(folder / "requests.sqlite"), random.Random(seed)
    shop = Workshop(ledger, rules, folder / "runs", console=Console(file=io.StringIO()))
    names = [f"R-{number:02}" for number in range(SIZE.requests)]
    while True:
        known = {one.id: one.state for one in ledger.requests()}
        if set(names) == known.keys() and set(known.values()) == {"answered"}:
            return
        try:
            for number in draw.sample(range(SIZE.requests), 5):
                if names[number] not in known:
                    ledger.add(names[number], DataSource(str(folder / f"request-{number:02}.jsonl")), date(2026, 11, 2))
            if ready := [one.id for one in ledger.requests("open", "returned")]:
                batches.plan(ledger, draw.sample(ready, min(PORTION, len(ready))), draw.choice(("joint", "stacked")))
            for one in batches.batches(ledger):
                if one.state in ("planned", "running"):
                    forget_batch(shop, one.id, keep=True)
            for one in ledger.requests("forgotten"):
                ledger.answer(one.id, hashlib.sha256(one.id.encode()).hexdigest())
        except UserError as error:
            if "builds on" in str(error):  # the other process ended a later batch first
                batches.reject(ledger, next(one.id for one in batches.batches(ledger) if one.state == "running"))
            time.sleep(0.05)


def start(folder: Path, rules: UnlearnRecipe, seed: int) -> int:
    """Start a working process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with (folder / "errors.log").open("a") as log, redirect_stderr(log):
            try:
                work(folder, rules, seed)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                log.flush()
                os._exit(status)
    return pid


def check(folder: Path, seen: Counter[str]) -> list[str]:
    """What is wrong with the ledger; ``seen`` counts what was there before, and is brought up to date."""
    ledger = Ledger(folder / "requests.sqlite")
    found, wrong = ledger.export(), []
    if ledger._connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        wrong.append("the file is damaged")
    if ledger._connection.execute("PRAGMA foreign_key_check").fetchall():
        wrong.append("a row refers to nothing")
    now = Counter({name: len(found[name]) for name in ("requests", "tests", "answers", "events")})
    wrong += [f"{name} were lost" for name in seen if now[name] < seen[name]]
    seen.update({name: now[name] - seen[name] for name in now})
    done = {one["id"] for one in found["batches"] if one["state"] == "done"}
    # a batch whose target was not reached for a request leaves it open, so that another one takes it
    left = {(one["batch"], one["request"]) for one in found["tests"] if one["verdict"] == "not reached"}
    forgotten = [(one["batch"], one["request"]) for one in found["members"] if one["batch"] in done]
    members = Counter(request for batch, request in forgotten if (batch, request) not in left)
    returned = Counter(one["request"] for one in found["events"] if one["what"] == "returned")
    wrong += [
        f"{name} is in {count} batches that are done, and came back {returned[name]} times"
        for name, count in members.items()
        if count > 1 + returned[name]
    ]
    answered = Counter(one["request"] for one in found["events"] if one["what"] == "answered")
    wrong += [f"{name} was answered {count} times" for name, count in answered.items() if count > 1]
    if set(answered) != {one["request"] for one in found["answers"]}:
        wrong.append("answers and events differ")
    ledger.close()
    return wrong


def main() -> None:
    """Kill, check, let both end, and check again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_world(given.folder, SIZE, given.seed)
    for old in (*given.folder.glob("requests.sqlite*"), given.folder / "errors.log"):
        old.unlink(missing_ok=True)
    shutil.rmtree(given.folder / "runs", ignore_errors=True)
    rules, draw, seen, wrong = quick(given.folder, given.seed), random.Random(given.seed), Counter[str](), list[str]()
    moments = Counter[str]()
    for turn in range(given.kills // 2):
        pids = [start(given.folder, rules, 2 * turn + side) for side in (0, 1)]
        for pid in pids:
            time.sleep(draw.uniform(0.05, 2.0))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        wrong += check(given.folder, seen)
        ledger = Ledger(given.folder / "requests.sqlite")
        moments.update({one.state for one in batches.batches(ledger)})
        ledger.close()
    last = [start(given.folder, rules, 1000 + side) for side in (0, 1)]
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in last]
    wrong += [*check(given.folder, seen), *(f"a process ended with status {one}" for one in ends if one)]
    if seen["answers"] != SIZE.requests:
        wrong.append(f"{seen['answers']} of {SIZE.requests} requests were answered")
    print(f"{given.kills} kills, found afterwards: {dict(moments)}; {dict(seen)}")
    print("\n".join(wrong) or "consistent, nothing lost, each request answered once")
    sys.exit(1 if wrong else 0)


def quick(folder: Path, seed: int) -> UnlearnRecipe:
    """A recipe of a few long steps: what is tested is the ledger, but a batch counts only if its rows became less likely."""
    from dataclasses import replace

    whole = recipe(folder, SIZE, seed)
    short = replace(whole.train, epochs=3, save_steps=1, learning_rate=3e-2)
    return replace(
        whole,
        train=short,
        retain=replace(whole.retain, weight=1.0),
        stop=replace(whole.stop, forget_target=None, utility_floor=0.0),
    )


if __name__ == "__main__":
    main()
