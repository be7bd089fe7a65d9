"""A fuzz campaign: damaged recipes, data, adapters, bases, foreign runs and caches, each given to the real command line.

    python scripts/fuzz.py --cases 1200 --out fuzz.json     # about half an hour on two cores
    python scripts/fuzz.py --kinds cache --only 17          # one case again, with its output

Every case is a copy of a small valid world with one to three places damaged, and one command in a forked process with a time
limit. It passes if the command succeeds or is refused with a message (exit status 0, 1 or 2). It fails if there is an internal
error (3), a traceback, a signal or a hang, or a number that differs from the undamaged one without a word about it, where the
damage must not change numbers (caches, and results that other runs state about themselves).

The seed and the number of a case define it: ``random.Random(f"{seed} {kind} {number}")``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from fuzz_damage import damage

KINDS = ("recipe", "data", "adapter", "base", "run", "cache")
LIMIT = 20.0  # seconds
MEMORY = 8 * 2**30
_TOWNS = ("Riga", "Oslo", "Bern", "Kyiv", "Rome", "Lima")
SUITE = {
    "sets": {
        "forget": {"data": {"path": "forget.jsonl"}, "role": "forget"},
        "retain": {"data": {"path": "retain.jsonl"}},
    },
    "metrics": ["probability"],
}


@dataclass(frozen=True)
class Case:
    """One case and its outcome.

    Attributes:
        kind: what is damaged.
        number: its number.
        damage: what was done.
        command: the arguments.
        fault: what is wrong; empty if it passed.
        seconds: its duration.
        said: the end of the output.
    """

    kind: str
    number: int
    damage: list[str]
    command: list[str]
    fault: str
    seconds: float
    said: str


def write_world(folder: Path) -> None:
    """Write a valid model, data, recipe, suite, and the runs of target, oracle and two unlearned models."""
    from llm_forget.data.encode import EncodingConfig, encode_all
    from llm_forget.data.examples import DataSource, read_examples
    from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

    os.chdir(folder)
    tokenizer = tiny_tokenizer()
    rows = {}
    for name, who in (("forget", "Ada"), ("retain", "Ben")):
        lines = [{"question": f"Where is {who}{at}?", "answer": f"In {town}."} for at, town in enumerate(_TOWNS)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows[name] = encode_all(tokenizer, read_examples(DataSource(f"{name}.jsonl")), EncodingConfig())[0]
    for name, known in (("base", [*rows["forget"], *rows["retain"]]), ("other", rows["retain"])):
        model = tiny_model(tokenizer, hidden=32)
        memorise(model, known, steps=60)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    recipe = {
        "model": {"name": "base", "dtype": "float32"},
        "data": {name: {"path": f"{name}.jsonl"} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        "adapter": {"rank": 2, "alpha": 2},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01},
        "output_dir": "runs/npo",
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("suite.yaml").write_text(yaml.safe_dump(SUITE))
    evaluation = {"model": {"name": "base", "dtype": "float32"}, "suite": "suite.yaml", "output_dir": "runs/target"}
    Path("evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    steps = [["unlearn", "--config", "recipe.yaml"]]
    steps += [["unlearn", "--config", "recipe.yaml", "--method.name", "grad_diff", "--output_dir", "runs/grad_diff"]]
    measure = ["evaluate", "--config", "evaluation.yaml"]
    steps += [measure, [*measure, "--model.name", "other", "--output_dir", "runs/oracle"]]
    for run in ("npo", "grad_diff"):
        controls = [f"--controls.{role}=runs/{role}/eval/suite.json" for role in ("target", "oracle")]
        steps += [[*measure, "--model.adapter", f"runs/{run}/adapter", "--output_dir", f"runs/{run}", *controls]]
    for step in steps:
        status, said = run_forked(step, folder, 300.0)
        if status != 0:
            sys.exit(f"{' '.join(step)} failed with status {status}: {said}")


def run_forked(command: list[str], folder: Path, limit: float) -> tuple[int | None, str]:
    """Run the command line in a forked process.

    Returns:
        Exit status (negative for a signal, None if it was stopped at the limit), and all that it printed.
    """
    with tempfile.TemporaryFile() as shown:
        pid = os.fork()
        if pid == 0:
            _child(command, folder, shown.fileno())
        end = time.monotonic() + limit
        status = None
        while status is None and time.monotonic() < end:
            done, raw = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(raw) if done else None
            if status is None:
                time.sleep(0.02)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shown.seek(0)
        return status, shown.read().decode(errors="replace")


def _child(command: list[str], folder: Path, shown: int) -> None:
    status = 3
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.argv = ["llm-forget", *command]
        from llm_forget.cli.main import main

        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")


def several(draw: random.Random, paths: list[Path]) -> list[str]:
    """Damage one to three of the files."""
    chosen = draw.sample(paths, min(len(paths), draw.choice([1, 1, 1, 2, 3])))
    return [damage(draw, path) for path in chosen]


_NEW = ["--output_dir", "runs/new"]
_MEASURE = ["evaluate", "--config", "evaluation.yaml"]
_WITH_ADAPTER = [*_MEASURE, "--model.adapter", "runs/npo/adapter", *_NEW]
_ADAPTER = ["--base", "base", "--adapter", "runs/npo/adapter"]
_MERGE = ["merge", *_ADAPTER, "--to", "merged"]
_TRAIN = ["unlearn", "--config", "recipe.yaml", "--train.epochs", "1", *_NEW]
_RUNS = [f"runs/{name}" for name in ("target", "oracle", "npo", "grad_diff")]
COMMANDS: dict[str, list[list[str]]] = {
    "recipe": [_TRAIN, ["plan", "--config", "recipe.yaml", "--json"], _MEASURE],
    "data": [_TRAIN, _MEASURE],
    "adapter": [
        ["doctor", *_ADAPTER],
        ["doctor", *_ADAPTER, "--prompt", "Where is Ada1?"],
        _MERGE,
        ["export", *_ADAPTER, "--to", "exported"],
        _WITH_ADAPTER,
    ],
    "base": [_MEASURE, _WITH_ADAPTER, _TRAIN, ["doctor", *_ADAPTER], _MERGE],
    "run": [
        ["compare", *_RUNS],
        ["compare", *_RUNS, "--json"],
        ["compare", "runs"],
        ["report", "runs/npo", "--target", "runs/target", "--oracle", "runs/oracle"],
    ],
    "cache": [_MEASURE],
}


def make_case(draw: random.Random, kind: str, world: Path) -> tuple[list[str], list[str]]:
    """Damage a copy of the world; return what was done and the command to run."""
    command = draw.choice(COMMANDS[kind])
    run = world / "runs" / draw.choice(["npo", "npo", "grad_diff", "target", "oracle"])
    places = {
        "recipe": [
            world / name for name in (("evaluation.yaml", "suite.yaml") if command == _MEASURE else ("recipe.yaml",))
        ],
        "data": [world / "forget.jsonl", world / "retain.jsonl"],
        "adapter": files_of(world / "runs/npo/adapter"),
        "base": files_of(world / "base"),
        "run": [path for path in files_of(run) if not {"cache", "adapter"} & set(path.parts)],
        "cache": files_of(world / "runs/target/eval/cache"),
    }
    return several(draw, places[kind]), command


def check_commands(world: Path) -> None:
    """Check that every command succeeds in the undamaged world; otherwise its cases would show nothing."""
    for kind, commands in COMMANDS.items():
        for command in commands:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
                folder = Path(name) / "world"
                shutil.copytree(world, folder)
                status, said = run_forked(command, folder, LIMIT)
                if status not in (0, 1):
                    sys.exit(f"{kind}: {' '.join(command)} failed without any damage: {said}")


def stated(kind: str, world: Path) -> dict[str, Any] | None:
    """The numbers that the damage of this kind must not change; None if there are none to compare."""
    path = world / "runs/target/eval/suite.json"
    if kind != "cache" or not path.is_file():
        return None
    sets = json.loads(path.read_text())["sets"]
    return {name: found["metrics"]["probability"]["value"] for name, found in sets.items()}


def judge(status: int | None, said: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What is wrong with an outcome; empty if nothing is."""
    if status is None:
        return "hang"
    if status not in (0, 1, 2):
        return "internal error" if status == 3 else f"signal {-status}" if status < 0 else f"status {status}"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if not said.strip():
        return "no message"
    if status == 0 and before is not None and before != after:
        return f"wrong number: {after} instead of {before}"
    return ""


def run_case(what: tuple[str, int, int, Path]) -> Case:
    """Run one case, given by kind, number and seed, in a copy of the world."""
    kind, number, seed, world = what
    draw = random.Random(f"{seed} {kind} {number}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "world"
        shutil.copytree(world, folder)
        before = stated(kind, folder)
        done, command = make_case(draw, kind, folder)
        start = time.monotonic()
        status, said = run_forked(command, folder, LIMIT)
        seconds = time.monotonic() - start
        fault = judge(status, said, before, stated(kind, folder))
        return Case(kind, number, done, command, fault, seconds, said.replace(str(folder), "…")[-2000:])


def campaign(kinds: list[str], numbers: Iterable[int], seed: int, jobs: int, world: Path) -> list[Case]:
    """Run the cases of these numbers of every kind, and print each fault when it is found."""
    todo = [(kind, number, seed, world) for number in numbers for kind in kinds]
    found = []
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for case in pool.imap(run_case, todo):
            found.append(case)
            if case.fault:
                print(f"{case.kind} {case.number}: {case.fault}")
                print(f"    {'; '.join(case.damage)} | {' '.join(case.command)}")
                print("    " + "\n    ".join(case.said.strip().splitlines()[-3:]), flush=True)
    return found


def import_all() -> None:
    """Import once what the commands import, before the forks."""
    import peft  # noqa: F401
    from transformers.models.llama import LlamaForCausalLM  # noqa: F401

    import llm_forget.evaluation.evaluate
    import llm_forget.report.page
    import llm_forget.runs.load
    import llm_forget.train.unlearn  # noqa: F401

    gc.freeze()  # the children do not collect the imported objects


def main(argv: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Run the campaign and return the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", type=int, help="run this number only, and print its output")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write all cases to this JSON file")
    given = parser.parse_args(argv)
    import_all()
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-world-") as name:
        write_world(Path(name))
        os.chdir(here)
        check_commands(Path(name))
        start = time.monotonic()
        numbers = range(math.ceil(given.cases / len(given.kinds))) if given.only is None else [given.only]
        found = campaign(given.kinds, numbers, given.seed, given.jobs, Path(name))
    if given.only is not None:
        for case in found:
            say(f"{case.kind} {case.number}: {case.damage} | {case.command}\n{case.said}")
    faults = Counter(case.fault.partition(":")[0] for case in found if case.fault)
    kinds = Counter(case.kind for case in found)
    slowest = max(case.seconds for case in found)
    say(f"{len(found)} cases ({', '.join(f'{kind} {count}' for kind, count in kinds.items())}), seed {given.seed}, "
        f"{time.monotonic() - start:.0f} s, slowest {slowest:.1f} s; faults: {dict(faults) or 'none'}")  # fmt: skip
    if given.out is not None:
        given.out.write_text(json.dumps([vars(case) for case in found], indent=1), encoding="utf-8")
    return sum(faults.values())


if __name__ == "__main__":
    sys.exit(min(1, main()))
