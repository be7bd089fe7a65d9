"""Run all parts that handle a forget set in one process: python private_run.py DATA all|kept, in an empty folder.

``all`` runs every part that reads the forget set and writes files, and keeps checkpoints; ``kept``
evaluates and reports again with ``keep_text: true``. The caller sets the cache variables to folders that it searches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

import llm_forget.train.unlearn
from llm_forget import evaluate, unlearn
from llm_forget.cli.entry import quiet_libraries
from llm_forget.cli.main import app
from llm_forget.config import ModelConfig
from llm_forget.errors import UserError
from llm_forget.model.load import load_model

TRAIN = {"epochs": 4, "batch_size": 4, "learning_rate": 0.01}
STOP = {"forget_target": None, "utility_floor": 0.0, "every": 2}


def run(command: str, *arguments: str) -> None:
    """Run one command of ``llm-forget``."""
    app([command, *arguments], standalone_mode=False)


def config(name: str, values: dict[str, Any]) -> tuple[str, str]:
    """Write a recipe to disk and return it as arguments."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return "--config", f"{name}.yaml"


def finetune(data: Path, name: str, sets: list[str], **changes: Any) -> None:
    values = {
        "model": {"name": str(data / "model"), "dtype": "float32"},
        "data": [{"path": str(data / f"{one}.jsonl")} for one in sets],
        "train": {**TRAIN, "trackers": ["tensorboard"]},
        "output_dir": f"runs/{name}",
        **changes,
    }
    run("finetune", *config(name, values))


def forget(data: Path, name: str, method: str, **changes: Any) -> None:
    values = {
        "model": {"name": "runs/target/model", "dtype": "float32"},
        "data": {one: {"path": str(data / f"{one}.jsonl")} for one in ("forget", "retain")},
        "method": {"name": method},
        "train": {**TRAIN, "save_steps": 2, "trackers": ["tensorboard"]},
        "stop": STOP,
        "output_dir": f"runs/{name}",
        **changes,
    }
    run("unlearn", *config(name, values))


def measure(data: Path, name: str, model: dict[str, Any], **changes: Any) -> None:
    values = {
        "model": {"dtype": "float32", **model},
        "suite": "custom",
        "data_dir": str(data),
        "output_dir": f"runs/{name}",
        "overrides": {"perplexity": None, "capability": None, "generation.max_new_tokens": 48},
        **changes,
    }
    run("evaluate", *config(f"{name}-eval", values))


def everything(data: Path) -> None:
    """Fine-tune, unlearn, evaluate, compare, report and export, by commands and from Python."""
    llm_forget.train.unlearn.drop_checkpoints = lambda _: None  # type: ignore[assignment]
    finetune(data, "target", ["forget", "retain"])
    finetune(data, "oracle", ["retain"])
    finetune(data, "learned", ["forget"], model={"name": "runs/target/model", "dtype": "float32"}, merge=False)
    forget(data, "npo-0", "npo")
    forget(data, "npo-1", "npo", seed=1)
    forget(data, "taken", "adapter_subtraction")
    forget(data, "other", "alt_npo", alternative={"source": "model", "max_new_tokens": 8})
    forget(data, "full", "grad_diff", adapter=None, train={**TRAIN, "learning_rate": 1e-3, "save_steps": 2})
    for name in ("target", "oracle"):
        measure(data, name, {"name": f"runs/{name}/model"})
    controls = {role: f"runs/{role}/eval/custom.json" for role in ("target", "oracle")}
    for name in ("npo-0", "npo-1"):
        measure(data, name, {"name": "runs/target/model", "adapter": f"runs/{name}/adapter"}, controls=controls)
    run("seeds", "runs/npo-0", "runs/npo-1", "--suite", "custom", "--to", "seeds.json", "--json")
    run("compare", "runs", "--to", "comparison.html")
    run("report", "runs/npo-0")
    base = ("--base", "runs/target/model")
    sets = ("--forget", str(data / "forget.jsonl"), "--retain", str(data / "retain.jsonl"))
    run(
        "subtract",
        "--minus",
        "runs/learned/adapter",
        "--search",
        "--tries",
        "2",
        "--floor",
        "0",
        *base,
        *sets,
        "--to",
        "subtracted",
    )
    run("compose", "--adapter", "runs/npo-0/adapter", "--adapter", "runs/taken/adapter", *base, *sets, "--to", "both")
    run("export", *base, "--adapter", "runs/npo-0/adapter", "--to", "exported")
    run("merge", *base, "--adapter", "runs/npo-0/adapter", "--to", "merged")
    run("doctor", *base, "--adapter", "runs/npo-0/adapter")
    from_python(data)
    refused(data)


def from_python(data: Path) -> None:
    """Unlearn and evaluate from Python. A copy of a data set kept by its library is the user's; all derived files are ours."""
    rows = [json.loads(line) for line in (data / "forget.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = load_model(ModelConfig("runs/target/model", dtype="float32"))
    before = evaluate(model, tokenizer, forget=rows, cache="cache-python")
    result = unlearn(model, tokenizer, forget=rows, stop=STOP, output_dir="runs/python", epochs=6, save_steps=1)
    after = evaluate(result.model, tokenizer, forget=rows, target=before, cache="cache-python")
    after.save("python.json")
    for shown in (result, after, after.frame(), after.examples("forget"), result.frame(), *after.verdict):
        print(shown, repr(shown))


def refused(data: Path) -> None:
    """Trigger messages about bad rows; they name the place and never quote the text."""
    text = (data / "forget.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    model, tokenizer = load_model(ModelConfig("runs/target/model", dtype="float32"))
    bad: list[tuple[Any, Any]] = [
        ([*rows, {"question": rows[0]["question"], "answer": None}], None),
        ([*rows, rows[0]["answer"]], None),
        ([{rows[0]["question"]: 1, "answer": "x"}], None),
        (rows[0], None),
        (rows, rows),
        (data / "broken.jsonl", None),
    ]
    for given, retain in bad:
        try:
            unlearn(model, tokenizer, forget=given, retain=retain)
        except UserError as error:
            print(error)
        else:
            raise SystemExit("bad rows were taken")


def kept(data: Path) -> None:
    """Repeat evaluation and report with ``keep_text``."""
    measure(data, "npo-0", {"name": "runs/target/model"}, keep_text=True)
    run("report", "runs/npo-0")


if __name__ == "__main__":
    quiet_libraries()
    {"all": everything, "kept": kept}[sys.argv[2]](Path(sys.argv[1]))
