"""Run the demo: fine-tune a small model on invented people, unlearn some of them with the default and with npo, and evaluate."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_forget.config import FinetuneRecipe, ModelConfig, UnlearnRecipe
from llm_forget.demo.splits import Splits, make_splits, write_splits
from llm_forget.demo.steps import Step, at_once, run_steps
from llm_forget.errors import UserError
from llm_forget.utils.build import load_recipe
from llm_forget.utils.cores import cores
from llm_forget.utils.safe_json import read_json
from llm_forget.utils.shipped import shipped
from llm_forget.utils.terminal import say

METHODS = ("default", "npo")  # recipes in recipes/demo
SEED = 1
FORGET_PEOPLE, RETAIN_PEOPLE, HOLDOUT_PEOPLE, NEIGHBOUR_PEOPLE, FACTS = 8, 28, 16, 8, 4
ROOT = Path("runs/demo")
_MEMORY = 5e9  # bytes that the largest step needs: 2.9 GB with bf16, more with fp32
_HEADINGS = (
    "forget\nprob.",
    "forget\nqual.",
    "attack\nAUC",
    "neigh.\nROUGE",
    "retain\nROUGE",
    "capab.\n%",
    "sec.",
    "×\norac.",
)
MARKER = "demo.json"  # marks a folder that the demo may replace


def run_demo(console: Console) -> dict[str, dict[str, Any]]:
    """Run all steps in ``runs/demo`` below the current folder, and print a table.

    Each step runs the recipe or evaluation of the same name in a process of its own, and replaces the results of an earlier demo.

    Returns:
        The rows of the table by model: target, oracle and each method.

    Raises:
        UserError: the model's package is missing, a step failed, or ``runs/demo`` contains other files.
    """
    from llm_forget.memory.machine import this_machine
    from llm_forget.model.load import locate_model

    splits = make_people(console)
    start = load_recipe(FinetuneRecipe, "recipes/demo/target.yaml").model
    locate_model(start.name)  # converts the package's file, which two processes would do twice
    console.rule("2  train, unlearn and evaluate")
    console.print("target: learns everybody.  oracle: learns everybody except the people to forget.")
    most = at_once(this_machine(), _MEMORY)
    run_steps(steps_of_demo(), console, most=most, threads=max(1, cores() // most) if most > 1 else None)
    rows = {name: _row(name) for name in ("target", "oracle", *METHODS)}
    (ROOT / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    console.rule("3  the result")
    console.print(make_table(rows))
    _show_answers(splits.forget[0], rows, console)
    _say_where_next(console)
    return rows


def steps_of_demo() -> list[Step]:
    """The commands of the demo. The oracle is evaluated first and the target second: each is a control for all later models."""
    trained = [_training("finetune", name, ()) for name in ("target", "oracle")]
    unlearned = [_training("unlearn", name, (ROOT / "target" / "result.json",)) for name in METHODS]
    return [
        *trained,
        *unlearned,
        _evaluation("oracle", ()),
        _evaluation("target", ("oracle",)),
        *(_evaluation(name, ("oracle", "target")) for name in METHODS),
    ]


def _training(command: str, name: str, needs: tuple[Path, ...]) -> Step:
    recipe = str(shipped(f"recipes/demo/{name}.yaml"))
    return Step(name, (command, "--config", recipe, "--overwrite", "true"), ROOT / name / "result.json", needs)


def _evaluation(name: str, controls: tuple[str, ...]) -> Step:
    model, made = model_of(name), {role: ROOT / role / "eval" / "demo.json" for role in (*controls, name)}
    command = ["evaluate", "--suite", "demo", "--model.name", model.name, "--output_dir", str(ROOT / name)]
    command += ["--model.adapter", model.adapter] if model.adapter else []
    for role in controls:
        command += [f"--controls.{role}", str(made[role])]
    needs = (ROOT / name / "result.json", *(made[role] for role in controls))
    return Step(f"evaluate {name}", tuple(command), made[name], needs)


def make_people(console: Console) -> Splits:
    """Write the demo's people into ``runs/demo/data``, for the recipes in ``recipes/demo``.

    Raises:
        UserError: ``runs/demo`` contains other files.
    """
    _claim(ROOT)
    console.rule("1  invent the people")
    splits = make_splits(
        forget_people=FORGET_PEOPLE,
        retain_people=RETAIN_PEOPLE,
        holdout_people=HOLDOUT_PEOPLE,
        neighbour_people=NEIGHBOUR_PEOPLE,
        facts_per_person=FACTS,
        seed=SEED,
    )
    write_splits(splits, ROOT / "data")
    console.print(
        f"{FORGET_PEOPLE} people to forget, {RETAIN_PEOPLE} + {NEIGHBOUR_PEOPLE} neighbours to keep, {HOLDOUT_PEOPLE} never "
        f"seen; {FACTS} facts each, written to {ROOT / 'data'}"
    )
    return splits


def _claim(root: Path) -> None:
    if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file() and not (root / "data").is_dir():
        raise UserError(
            f"{root} contains files that are not the demo's; move them away, or run the demo in another folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text(json.dumps({"seed": SEED, "started": time.time()}) + "\n", encoding="utf-8")


def model_of(name: str) -> ModelConfig:
    """A model of the demo: a merged folder for target and oracle, an adapter on the target for each method."""
    if name in ("target", "oracle"):
        return ModelConfig(name=str(ROOT / name / "model"))
    return ModelConfig(name=str(ROOT / "target" / "model"), adapter=str(ROOT / name / "adapter"))


def _row(name: str) -> dict[str, Any]:
    """The row of a model, from the files of its steps."""
    from llm_forget.evaluation.results import open_results

    results = open_results(ROOT / name / "eval" / "demo.json").raw
    return summarise(results, read_json(ROOT / name / "result.json")["seconds"])


def summarise(results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The row of the table for one evaluation."""

    def value(part: str, metric: str) -> float:
        return float(results["sets"][part]["metrics"][metric]["value"])

    quality = results["forget_quality"]
    return {
        "forget_probability": value("forget", "probability"),
        "forget_rouge": value("forget", "rougeL_recall"),
        "attack_auc": float(results["attacks"]["auc"]["loss"]["value"]),
        "forget_quality": quality["forget"]["arithmetic"]["pvalue"] if quality else None,
        "retain_probability": value("retain", "probability"),
        "retain_rouge": value("retain", "rougeL_recall"),
        "neighbour_rouge": value("neighbour", "rougeL_recall"),
        "utility": results["model_utility"]["arithmetic"]["value"],
        "capability": float(results["capability"]["acc"]["value"]),
        "perplexity": float(results["perplexity"]["value"]),
        "seconds": seconds,
    }


def make_table(rows: dict[str, dict[str, Any]]) -> Table:
    """The demo's table: forgetting, utility and time for each model."""
    table = Table(title=f"Unlearning {FORGET_PEOPLE} people: forgetting, utility and time", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        quality = "–" if row["forget_quality"] is None else _p_value(row["forget_quality"])
        table.add_row(
            name,
            f"{row['forget_probability']:.3f}",
            "1" if name == "oracle" else quality,
            f"{row['attack_auc']:.2f}",
            f"{row['neighbour_rouge']:.3f}",
            f"{row['retain_rouge']:.3f}",
            f"{100 * row['capability']:.1f}",
            f"{row['seconds']:.0f}",
            f"{row['seconds'] / rows['oracle']['seconds']:.2f}",
        )
    return table


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _show_answers(row: dict[str, Any], rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print every model's answer to one question. The person is invented, so the text may be shown."""
    from llm_forget.model.ask import ask
    from llm_forget.model.load import load_model

    recipe = load_recipe(UnlearnRecipe, "recipes/demo/default.yaml")
    console.print()
    say(console, row["question"], label="Asked:", label_style="bold")
    say(console, f"true answer: {row['answer']}")
    for name in rows:
        model, tokenizer = load_model(model_of(name))
        reply = ask(model, tokenizer, str(row["question"]), recipe.encoding)
        say(console, f"  {name:>20}: {reply}")
        del model
        gc.collect()


def _say_where_next(console: Console) -> None:
    console.print(
        f"""
[bold]Where to look next[/]
  {ROOT}/default/result.json  what the run did, why it stopped    {ROOT}/default/eval/demo.json  all scores with intervals
  {ROOT}/default/adapter/     the adapter, with its card          {ROOT}/default/metrics.jsonl   every step
  the same run by hand:  accelerate launch recipes/unlearn.py --config recipes/demo/default.yaml --overwrite true
  serve it:              vllm serve {ROOT}/target/model --enable-lora --lora-modules unlearned={ROOT}/default/adapter
  your own data:         README.md, "Your own data"
Forget probability and attack AUC should be the oracle's; neighbours, retain and capability should stay at the target's.
Forget quality is the p-value of a test against the oracle. Above 0.05 the test cannot distinguish the two models.
The attack guesses from the loss who was learned: at 1 it is always right, at 0.5 it guesses.
Neighbours share a town, an employer or a name with the forgotten people. No recipe saw them, so they suffer first.
An adapter suppresses the facts. The base weights still contain them until you merge it.""",
        highlight=False,
        soft_wrap=True,
    )


def demo_environment() -> None:
    """Set the environment of the demo: no network access."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
