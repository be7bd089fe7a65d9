"""The sides of scripts/benchmark.py: our trainer, and a plain implementation that follows published code.

Each measurement is one call of ``measure`` in its own process. ``spec`` describes it and comes from JSON.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

BETA, STRENGTH = 0.1, 1.0
CORE = 40  # retain rows of the side core
Times = tuple[float, float]
# (step number from 1, model) → whether to stop; called after every optimiser step.
AfterStep = Callable[[int, Any], bool]
# Recipe changes of the adapter sides, by section.
LEAN: dict[str, dict[str, Any]] = {
    "lean": {},
    "top": {"adapter": {"top_share": 1 / 3}},
    "core": {"adapter": {"top_share": 1 / 3}, "retain": {"most": CORE}},
    "small": {"adapter": {"top_share": 1 / 3}, "train": {"gradient_checkpointing": "selective"}},
    "pieces": {"train": {"batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": "selective"}},
}


def recipe_of(spec: dict[str, Any], side: str) -> Any:
    """The recipe of a side. Rows, order and clipping are the same for all sides; ``spec["recipe"]`` overrides sections."""
    from llm_forget.config import UnlearnRecipe
    from llm_forget.utils.build import build

    method, full = spec["method"], side not in LEAN
    values: dict[str, Any] = {
        "model": {"name": spec["model"], "dtype": "float32" if full else spec.get("dtype", "auto")},
        "data": {name: {"path": spec[name]} for name in ("forget", "retain")},
        "encoding": {"system_prompt": spec["system_prompt"]},
        "method": {"name": method, **({"strength": STRENGTH} if method == "adapter_subtraction" else {})},
        "retain": {"name": "nll" if method == "npo" else None},
        "adapter": None if full else {"rank": 16, "alpha": 16},
        "train": {
            "batch_size": spec["batch"] // int(os.environ.get("WORLD_SIZE", "1")),
            "epochs": spec["epochs"],
            "learning_rate": 1e-5 if full else 1e-3,
        },
        "stop": {"forget_target": None, "per_example": False, "rows": spec["batch"]},
        "output_dir": spec["output"],
    }
    if full and method in ("adapter_subtraction", "retrain"):
        values["method"] = {"name": "grad_ascent"}  # only to pass the recipe's checks; the loss is set below
    for changed in (LEAN.get(side, {}), spec.get("recipe", {})):
        for section, changes in changed.items():
            values[section] = {**values[section], **changes}
    return build(UnlearnRecipe, values, "benchmark")


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Load the model, train for ``spec["steps"]`` steps, all steps or until the goal, and finish as the method does."""
    from llm_forget.data.schedule import schedule
    from llm_forget.model.load import frozen_dtype, load_tokenizer
    from llm_forget.train.coreset import coreset
    from llm_forget.train.prepare import prepare as prepare_rows

    started = time.perf_counter()
    recipe = recipe_of(spec, spec["side"])
    tokenizer = load_tokenizer(recipe.model)
    sets = prepare_rows(recipe.data, recipe.encoding, tokenizer, rows=recipe.stop.rows, seed=recipe.seed)
    kept = coreset(sets, recipe.retain.most) if spec["method"] == "npo" else []
    lengths = [[len(row.input_ids) for row in rows] for rows in (sets.forget, sets.retain)]
    drawn = schedule(
        lengths[0], [lengths[1][one] for one in kept], batch=spec["batch"], epochs=recipe.train.epochs, seed=0
    )
    pairs = [(forget, None if retain is None else kept[retain]) for forget, retain in drawn]
    whole = len(pairs) // spec["batch"]
    steps = min(spec["steps"] or whole, whole)
    goal = Goal(spec["goal"], sets, tokenizer.pad_token_id) if spec.get("goal") else None
    profile = Profile() if spec.get("profile") else None

    def after(step: int, model: Any) -> bool:
        return (goal is not None and goal.reached(step, model)) or step >= steps

    run = _plain if spec["side"] == "plain" else _ours
    job = Job(spec, recipe, sets, pairs, whole, tokenizer.pad_token_id, after, profile)
    times, losses, set_up = run(job)
    used = pairs[: len(times) * spec["batch"]]
    tokens = sum(lengths[0][one] + (lengths[1][two] if two is not None else 0) for one, two in used)
    step, cpu_step = (statistics.mean(each[1:] or each) for each in zip(*times, strict=True))  # the first one warms up
    spent = sum(wall for wall, _ in times)
    result = {
        "seconds_per_step": step,
        "cpu_seconds_per_step": cpu_step,
        "seconds_per_epoch": step * len(sets.forget) / spec["batch"],
        "seconds_to_set_up": set_up - started,
        "seconds_per_run": set_up - started + spent + step * (whole - len(times)),
        "run_is_extrapolated": len(times) < whole,
        "tokens_per_second": tokens / len(times) / step,
        "peak_bytes": peak(),
        "losses": losses,
        "steps": len(times),
        **({"seconds_to_goal": set_up - started + spent, **goal.found} if goal else {}),
    }
    if profile:  # after the peak was read
        rate = product_rate(frozen_dtype(recipe.model), rows=spec["product_rows"])
        result["profile"] = profile.found | {"rate": rate}
    return result


class Goal:
    """The goal for forget and retain probability, checked every few steps outside the measured time."""

    def __init__(self, wanted: dict[str, Any], sets: Any, pad: int) -> None:
        self.wanted, self.sets, self.pad = wanted, sets, pad
        self.found: dict[str, Any] = {"goal": wanted, "reached": False, "checks": []}

    def reached(self, step: int, model: Any) -> bool:
        """Whether the goal is reached after this step; False without a check at most steps."""
        if step % self.wanted["every"]:
            return False
        forget, retain = probabilities(model, self.sets, self.pad)
        self.found["checks"].append({"step": step, "forget": forget, "retain": retain})
        self.found["reached"] = forget <= self.wanted["forget"] and retain >= self.wanted["retain"]
        print(f"    step {step}: forget {forget:.3f}, retain {retain:.3f}", file=sys.stderr, flush=True)
        return bool(self.found["reached"])


def probabilities(model: Any, sets: Any, pad: int, most: int = 60) -> tuple[float, float]:
    """Mean answer probability of the forget rows and of the first retain rows."""
    from llm_forget.model.measure import answer_logps

    forget, retain = (float(answer_logps(model, rows[:most], pad)[1].mean()) for rows in (sets.forget, sets.retain))
    return forget, retain


class Profile:
    """Time of the third step by operation, and the number of operations of the second step."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "matmul")

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._open: Any = None

    def note(self, moment: str) -> None:
        """Record the resident memory at a moment, in bytes."""
        statm = Path("/proc/self/statm")
        if statm.is_file():
            pages = int(statm.read_text().split()[1])
            self.found.setdefault("resident", {})[moment] = pages * os.sysconf("SC_PAGE_SIZE")

    def begin(self, step: int) -> None:
        """Start measuring before step ``step``, counted from 1."""
        from torch.profiler import ProfilerActivity, profile
        from torch.utils.flop_counter import FlopCounterMode

        if step == 2:
            self._open = FlopCounterMode(display=False)
        elif step == 3:
            self._open = profile(activities=[ProfilerActivity.CPU])
        if self._open is not None:
            self._open.__enter__()

    def end(self, step: int) -> None:
        """Stop measuring after the step."""
        if step == 1:
            self.found["peak_bytes"] = peak()  # later steps include the profiler's own memory
        if self._open is None:
            return
        self._open.__exit__(None, None, None)
        if step == 2:
            self.found["operations"] = self._open.get_total_flops()
        else:
            sums = {"products": 0.0, "attention": 0.0, "copies": 0.0, "rest": 0.0}
            dearest = []
            for event in self._open.key_averages():
                name, seconds = event.key.removeprefix("aten::"), event.self_cpu_time_total / 1e6
                sums[_kind(name)] += seconds
                dearest.append((seconds, name))
            self.found["seconds"] = sums
            self.found["dearest"] = [
                {"operation": name, "seconds": seconds} for seconds, name in sorted(dearest)[:-13:-1]
            ]
        self._open = None


def _kind(name: str) -> str:
    if name in Profile.PRODUCTS:
        return "products"
    if "attention" in name:
        return "attention"
    return "copies" if name in ("copy_", "clone", "cat", "_to_copy", "fill_", "zero_") else "rest"


class Job(NamedTuple):
    """The input of both implementations: rows in their order, stop condition and profile."""

    spec: dict[str, Any]
    recipe: Any
    sets: Any
    pairs: Any
    whole: int  # steps in a whole run
    pad: int
    after: AfterStep
    profile: Profile | None


def product_rate(dtype: Any, rows: int, width: int = 576) -> float:
    """Highest rate of matrix products with the model's widths in a dtype, in operations per second."""
    import torch

    left, rates = torch.randn(rows, width).to(dtype), []
    for out in (width, 1536, 1536 * 8):
        right = torch.randn(width, out).to(dtype)
        for _ in range(15):
            begun = time.perf_counter()
            torch.mm(left, right)
            rates.append(2 * rows * width * out / (time.perf_counter() - begun))
    return max(rates)


def _ours(job: Job) -> tuple[list[Times], list[float], float]:
    from dataclasses import replace

    from transformers import TrainerCallback

    from llm_forget.methods.adapter_subtraction import AdapterSubtraction
    from llm_forget.model.blocks import add_adapter
    from llm_forget.model.fused_lora import fused_lora
    from llm_forget.model.load import load_model
    from llm_forget.model.lower_trial import lower_blocks_once
    from llm_forget.model.measure import answer_logps
    from llm_forget.model.packing import packed_attention
    from llm_forget.model.weights import held_in_bf16, put, trainable_state
    from llm_forget.retain.nll import NLL
    from llm_forget.train.arguments import unlearning_arguments
    from llm_forget.train.batches import PairDataset
    from llm_forget.train.objective import Objective, References
    from llm_forget.train.trainer import UnlearningTrainer
    from llm_forget.utils.plugins import find_class

    spec, recipe, sets, pairs, _, pad, after, profile = job

    class Clock(TrainerCallback):
        times: list[Times]
        losses: list[float]

        def __init__(self) -> None:
            self.times, self.losses = [], []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if profile:
                profile.begin(state.global_step + 1)
            self.begun = clocks()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.times.append(since(self.begun))
            if profile:
                profile.end(state.global_step)
            control.should_training_stop = control.should_training_stop or after(state.global_step, model)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    if profile:
        profile.note("libraries and rows")
    model, _ = load_model(recipe.model, trainable=recipe.adapter is None)
    if recipe.adapter is not None:
        model = add_adapter(model, recipe.adapter)
    name = spec["method"]
    method = AdapterSubtraction() if name == "adapter_subtraction" else None
    if method is None:
        method = find_class("llm_forget.methods", name, "forget_loss")()
    clock, held = Clock(), ExitStack()
    for context in (packed_attention, lower_blocks_once, fused_lora):  # as train.unlearn does
        held.enter_context(context(model))
    reference = References(answer_logps(model, sets.forget, pad)[0] if name == "npo" else None)
    trainer = UnlearningTrainer(
        model,
        replace(
            unlearning_arguments(recipe.train, 0, recipe.adapter is not None, autocast=held_in_bf16(model)),
            use_cpu=on_cpu(),
        ),
        PairDataset(sets.forget, sets.retain, pairs),
        Objective(method, NLL() if name == "npo" else None, retain_weight=recipe.retain.weight),
        pad_token_id=pad,
        reference=reference,
        callbacks=[clock],
    )
    if profile:
        profile.note("model and reference")
    set_up = time.perf_counter()
    with held:
        trainer.train()
    if name == "adapter_subtraction" and recipe.adapter is not None:
        trained = trainable_state(model)
        for key, value in model.named_parameters():
            if "lora_B" in key:
                put(value, trained[key] * -STRENGTH)
    if trainer.is_world_process_zero():
        model.save_pretrained(spec["output"])
    return clock.times, clock.losses, set_up


def _plain(job: Job) -> tuple[list[Times], list[float], float]:
    import copy

    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    spec, recipe, sets, pairs, whole, pad, after, profile = job

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

    device = "cpu" if on_cpu() else "cuda"
    if profile:
        profile.note("libraries and rows")
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).to(device)
    name = spec["method"]
    with_copy = name in ("npo", "adapter_subtraction")
    reference: Any = copy.deepcopy(model).eval().requires_grad_(False) if with_copy else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, weight_decay=0.0)
    rates = get_linear_schedule_with_warmup(optimizer, 0, whole)
    model.train()
    if profile:
        profile.note("model and reference")
    times, losses, set_up = [], [], time.perf_counter()
    for step in range(1, whole + 1):
        if profile:
            profile.begin(step)
        begun = clocks()
        batch = pairs[(step - 1) * spec["batch"] : step * spec["batch"]]
        nll, lengths = answers(model, [sets.forget[one] for one, _ in batch])
        if name == "npo":
            with torch.no_grad():
                before, _ = answers(reference, [sets.forget[one] for one, _ in batch])
            loss = -(2 / BETA) * functional.logsigmoid(BETA * (nll - before)).mean()
            kept, sizes = answers(model, [sets.retain[two] for _, two in batch])
            loss = loss + recipe.retain.weight * (kept / sizes).mean()
        else:
            loss = (nll / lengths).mean() * (-1 if name == "grad_ascent" else 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
        optimizer.step()
        rates.step()
        times.append(since(begun))
        losses.append(float(loss.detach()))
        if profile:
            profile.end(step)
        if after(step, model):
            break
    if name == "adapter_subtraction":
        with torch.no_grad():
            for value, old in zip(model.parameters(), reference.parameters(), strict=True):
                value.copy_(old - STRENGTH * (value - old))
    model.save_pretrained(spec["output"])
    return times, losses, set_up


def clocks() -> Times:
    """Wall and CPU seconds. CPU seconds are more reliable on a shared machine."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(begun: Times) -> Times:
    """Wall and CPU seconds since ``begun``."""
    now = clocks()
    return now[0] - begun[0], now[1] - begun[1]


def on_cpu() -> bool:
    """Whether there is no GPU."""
    import torch

    return not torch.cuda.is_available()


def peak() -> int:
    """Peak memory in bytes: of the GPU if there is one, otherwise resident memory of this process, including loading."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
