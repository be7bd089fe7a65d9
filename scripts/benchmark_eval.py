"""Compare one pass for all likelihood metrics with one pass per metric: time, peak memory, and cost per row by set size.

    python scripts/benchmark_eval.py --model FOLDER [--adapter FOLDER] --data-dir TOFU_FOLDER [--limit 40] [--dtype bfloat16]
    python scripts/benchmark_eval.py --tiny

Both sides run on the same rows of the TOFU suite, each in its own process. "separate" follows published toolkits: each
likelihood metric has its own forward pass over the answers that it reads, in batches of fixed size in file order, padded to the
longest row, with the logits of all tokens. Metrics with two definitions share a pass. Numbers that both sides compute must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_forget.config import ModelConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import Example
from llm_forget.demo.splits import make_splits, write_splits
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import read_set
from llm_forget.evaluation.suite import Suite, load_suite
from llm_forget.model.load import load_model
from llm_forget.testing import tiny_model, tiny_tokenizer

# Metric → the kinds of answers that need a pass if the metric is computed alone.
_READS = {
    "probability": ("answer",),
    "exact_memorisation": ("answer",),
    "extraction_strength": ("answer",),
    "entropy": ("answer",),
    "normalised_probability": ("answer", "wrong_answers"),
    "truth_ratio_arithmetic": ("paraphrases", "wrong_answers"),
}
# Attacks that read the same answers, each with its own pass over members and non-members.
_ATTACKS = ("loss", "zlib", "min_k")
_AGREE = 0.02  # largest difference of probabilities: bf16 rounding depends on the batch


def main(argv: Sequence[str] | None = None) -> int:
    """Run both sides, print the comparison, and return 0 if they agree."""
    options = _options().parse_args(argv)
    if options.side:
        print(json.dumps(_side(options)))
        return 0
    if not options.tiny and not (options.model and options.data_dir):
        _options().error("give --model and --data-dir, or --tiny")
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            options.data_dir = _make_data(Path(folder))
        ours, separate = _run("ours", options), _run("separate", options)
        growth = [_run("growth", options, rows=rows) for rows in options.sizes]
    _print(ours, separate, growth, options)
    return 0 if _agree(ours, separate) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model")
    parser.add_argument("--adapter", help="folder of an adapter to merge into the model")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true", help="use a tiny random model and made-up people")
    parser.add_argument("--data-dir", help="folder with the TOFU files")
    parser.add_argument("--limit", type=int, default=40, help="examples per set")
    parser.add_argument("--batch-size", type=int, default=16, help="batch size of the separate passes")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[100, 400, 1600],
        help="numbers of rows at which to measure the cost per row",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "separate", "growth"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _run(side: str, options: argparse.Namespace, rows: int = 0) -> dict[str, Any]:
    """Run one side in its own process, to measure its own peak memory."""
    command = [sys.executable, __file__, "--side", side, "--rows", str(rows), "--data-dir", str(options.data_dir)]
    for name in ("model", "adapter", "dtype", "limit", "batch_size", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(
        [*command, *(["--tiny"] if options.tiny else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the {side} side failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _side(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    model, tokenizer = _load(options)
    suite = _suite(options)
    if options.side == "growth":
        # a question has several answers, and each is a row
        answers = 1 + sum(map(len, _others(_examples(suite)["retain"][:1])))
        count = -(-options.rows // answers)
        suite = replace(suite, sets={"retain": replace(suite.sets["retain"], limit=count)})
    examples = _examples(suite)
    rows = sum(len(found) + sum(map(len, _others(found))) for found in examples.values())
    run_suite(_small(suite), model, tokenizer)  # warm-up: imports, kernels, and the check for shared prefixes
    before, wall, cpu = _start_peak(), time.perf_counter(), time.process_time()
    measured = (
        _separate(suite, examples, model, tokenizer, options)
        if options.side == "separate"
        else _ours(suite, model, tokenizer)
    )
    return {
        **measured,
        "rows": rows,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "before_mb": before,
        "peak_mb": max(
            before, _peak_mb()
        ),  # the system updates its counter with a delay, so the start value counts too
    }


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    if options.tiny:
        tokenizer = tiny_tokenizer()
        return tiny_model(tokenizer), tokenizer
    return load_model(ModelConfig(name=options.model, adapter=options.adapter, dtype=options.dtype))


def _suite(options: argparse.Namespace) -> Suite:
    """The likelihood part of the TOFU suite, without gradient norms, which need a backward pass per row."""
    changes = {"data_dir": options.data_dir, "perplexity": "null", "capability": "null"}
    suite = load_suite("tofu", changes)
    if suite.attacks is not None:
        suite = replace(suite, attacks=replace(suite.attacks, attacks=None))
    sets = {name: replace(one, generate=False, limit=options.limit) for name, one in suite.sets.items()}
    return replace(suite, sets=sets)


def _small(suite: Suite) -> Suite:
    return replace(suite, sets={name: replace(one, limit=2) for name, one in suite.sets.items()})


def _examples(suite: Suite) -> dict[str, list[Example]]:
    return {name: read_set(name, config) for name, config in suite.sets.items()}


def _others(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    return [(*example.paraphrases, *example.wrong_answers) for example in examples]


def _ours(suite: Suite, model: Any, tokenizer: Any) -> dict[str, Any]:
    results = run_suite(suite, model, tokenizer)
    metrics = {
        name: {label: one["value"] for label, one in found["metrics"].items()}
        for name, found in results["sets"].items()
    }
    attacks = results.get("attacks") or {}
    return {"metrics": metrics, "attacks": sorted(attacks.get("auc", {})), "passes": len(suite.sets)}


def _separate(
    suite: Suite, examples: dict[str, list[Example]], model: Any, tokenizer: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Compute every metric of the suite with its own passes."""
    wanted = _ours(_small(suite), model, tokenizer)
    attacks = [label for label in wanted["attacks"] if label.startswith(_ATTACKS)]
    metrics: dict[str, dict[str, float]] = {}
    passes = 0
    for name, found in examples.items():
        metrics[name] = {}
        jobs = [(label, kinds) for label, kinds in _READS.items() if label in wanted["metrics"][name]]
        jobs += [(f"attack {label}", ("answer",)) for label in attacks if name in ("forget", "holdout")]
        for label, kinds in jobs:
            for kind in kinds:
                rows = _encode(kind, found, suite, tokenizer)
                values = list(_pass(label, rows, model, suite, tokenizer, options.batch_size))
                passes += 1
                if label in ("probability", "exact_memorisation") and kind == "answer":
                    metrics[name][label] = float(torch.tensor(values).mean())
    return {"metrics": metrics, "passes": passes}


def _encode(kind: str, examples: Sequence[Example], suite: Suite, tokenizer: Any) -> list[Encoded]:
    if kind == "paraphrases" and not any(example.paraphrases for example in examples):
        kind = "answer"
    if kind == "answer":
        return encode_all(tokenizer, examples, suite.encoding)[0]
    pairs = [(example, text) for example in examples for text in getattr(example, kind)]
    return encode_all(tokenizer, [one for one, _ in pairs], suite.encoding, answers=[text for _, text in pairs])[0]


def _pass(label: str, rows: Sequence[Encoded], model: Any, suite: Suite, tokenizer: Any, size: int) -> Iterator[float]:
    """One forward pass per batch, all logits, and one number per row."""
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], tokenizer.pad_token_id or 0)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        yield from _per_row(label, logits[:, :-1], batch["input_ids"][:, 1:], batch["answer_mask"][:, 1:])


def _per_row(label: str, logits: Tensor, targets: Tensor, mask: Tensor) -> list[float]:
    if label in ("exact_memorisation", "extraction_strength"):
        tokens = (logits.argmax(-1) == targets).float()
    elif label.endswith("plus_plus") or label == "entropy":
        logps = logits.log_softmax(-1)
        mean = (logps.exp() * logps).sum(-1)
        spread = ((logps.exp() * logps**2).sum(-1) - mean**2).clamp(min=1e-12).sqrt()
        tokens = (logps.gather(-1, targets[..., None]).squeeze(-1) - mean) / spread
    else:
        tokens = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    means = (tokens * mask).sum(-1) / mask.sum(-1)
    found: list[float] = (means.exp() if label == "probability" else means).tolist()
    return found


def _start_peak() -> float:
    """Reset the peak if the system allows it, and return resident memory in MB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    """Largest resident memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2


def _make_data(folder: Path) -> str:
    """Write made-up people under the names of the TOFU files."""
    splits = make_splits(
        forget_people=6, retain_people=8, holdout_people=3, neighbour_people=2, facts_per_person=4, seed=0
    )
    write_splits(splits, folder)
    for source, names in {
        "forget": ("forget01_perturbed",),
        "retain": ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"),
        "holdout": ("holdout01",),
    }.items():
        for name in names:
            (folder / f"{name}.jsonl").write_bytes((folder / f"{source}.jsonl").read_bytes())
    return str(folder)


def _agree(ours: dict[str, Any], separate: dict[str, Any]) -> bool:
    pairs = [
        (ours["metrics"][name][label], value)
        for name, found in separate["metrics"].items()
        for label, value in found.items()
    ]
    return bool(pairs) and all(abs(own - other) <= _AGREE for own, other in pairs)


def _print(
    ours: dict[str, Any], separate: dict[str, Any], growth: Sequence[dict[str, Any]], options: argparse.Namespace
) -> None:
    settings = f"batch of {options.batch_size} there; {options.threads} thread(s)"
    print(f"{ours['rows']} rows, {separate['passes']} separate passes; {settings}")
    print(f"{'':12}{'wall s':>10}{'CPU s':>10}{'peak MB':>10}{'above the loaded model MB':>28}")
    for name, one in (("one pass", ours), ("separate", separate)):
        print(
            f"{name:12}{one['wall']:10.2f}{one['cpu']:10.2f}{one['peak_mb']:10.0f}{one['peak_mb'] - one['before_mb']:28.0f}"
        )
    print(
        f"{'ratio':12}{separate['wall'] / ours['wall']:10.2f}{separate['cpu'] / ours['cpu']:10.2f}"
        f"{separate['peak_mb'] / ours['peak_mb']:10.2f}"
    )
    print("the two sides agree" if _agree(ours, separate) else "THE TWO SIDES DISAGREE: ignore the times")
    for one in growth:
        wall, cpu = (1000 * one[clock] / one["rows"] for clock in ("wall", "cpu"))
        print(f"{one['rows']:6} rows: {wall:8.2f} ms per row (CPU {cpu:.2f})")


if __name__ == "__main__":
    sys.exit(main())
