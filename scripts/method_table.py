"""Run and evaluate all recipes of a folder, and write one table.

    python scripts/method_table.py --recipes recipes/demo --suite demo --oracle runs/demo/oracle
    python scripts/method_table.py --recipes scripts/tofu_mini --suite scripts/tofu_mini/tofu_mini.yaml \\
        --material DIR --oracle-adapter models/tofu-mini-oracle

The target is the model that the recipes name. Results go to the recipes' own output folders. The table goes to methods.md and
methods.json in their parent folder. A recipe whose run folder holds a result and an evaluation is skipped, so an interrupted
table can be continued; delete a run folder to run it again. --only NAME,NAME runs some recipes, --set train.epochs=3 changes all
recipes, --to FOLDER writes everything to another folder.

--material DIR, or $LLM_FORGET_MATERIAL, is the folder that holds the data and adapters of the recipes and the suite. It becomes
their data_dir, and relative adapter paths start from it. scripts/tofu_mini/README.md lists the files for TOFU-mini.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from llm_forget.cli.entry import run_entry
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import ControlsConfig, EvalRecipe
from llm_forget.model.load import locate_model
from llm_forget.utils.build import load_recipe
from llm_forget.utils.files import write_json, write_text
from llm_forget.utils.shipped import shipped

CLOSE, KEPT = 0.1, 0.8  # within this of the oracle's forget probability, with this share of the target's retain ROUGE-L
COLUMNS = ("forget prob.", "forget qual.", "retain prob.", "retain ROUGE-L", "capab. %", "sec.", "steps", "reaches")


def unlearning_recipes(
    folder: str, only: Sequence[str], changes: Mapping[str, str], to: str | None, material: str | None = None
) -> dict[str, UnlearnRecipe]:
    """Load the unlearning recipes of a folder, by file name. Other files, such as the target's recipe, are ignored.

    Args:
        folder: the folder.
        only: names of the recipes to load; empty loads all.
        changes: dotted key → YAML text, applied to every recipe.
        to: the folder for all runs; None keeps each recipe's own.
        material: the recipes' ``data_dir``, and the start of their relative adapter paths; None changes neither.

    Raises:
        RecipeError: the folder has no such recipe.
    """
    files = {
        path.stem: path for path in sorted((Path(folder) if Path(folder).is_dir() else shipped(folder)).glob("*.yaml"))
    }
    files = {name: path for name, path in files.items() if "method" in (yaml.safe_load(path.read_text("utf-8")) or {})}
    missing = [name for name in only if name not in files]
    if missing or not files:
        raise RecipeError(
            f"--recipes {folder}: no recipe for {', '.join(missing) or 'unlearning'}; there are {', '.join(files)}"
        )
    recipes = {
        name: load_recipe(UnlearnRecipe, path, changes) for name, path in files.items() if not only or name in only
    }
    if material is not None:
        recipes = {name: _with_material(recipe, material) for name, recipe in recipes.items()}
    if to is not None:
        recipes = {name: replace(recipe, output_dir=str(Path(to) / name)) for name, recipe in recipes.items()}
    return recipes


def _with_material(recipe: UnlearnRecipe, material: str) -> UnlearnRecipe:
    """Read data and adapter from a folder, unless the recipe's data names no file in it."""
    if recipe.data.forget.file is None:
        return recipe
    adapter = None if recipe.model.adapter is None else str(Path(material) / recipe.model.adapter)
    return replace(recipe, data_dir=material, model=replace(recipe.model, adapter=adapter))


def model_after(recipe: UnlearnRecipe, folder: Path, merged: Path) -> ModelConfig:
    """The model that a run produced: its adapter on the recipe's model. If that model has an adapter, it is merged first."""
    if recipe.adapter is None:
        return replace(recipe.model, name=str(folder / "model"), adapter=None)
    base = recipe.model
    if base.adapter is not None:
        base = replace(base, name=str(_merged(base, merged)), adapter=None)
    return replace(base, adapter=str(folder / "adapter"))


def _merged(config: ModelConfig, folder: Path) -> Path:
    """Merge the recipe's model into one folder in fp32, unless the folder exists."""
    if not (folder / "config.json").is_file():
        from llm_forget.model.load import load_model
        from llm_forget.utils.files import new_folder

        model, tokenizer = load_model(replace(config, dtype="float32"))
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return folder


def measured(
    name: str,
    model: ModelConfig,
    folder: Path,
    suite: str,
    overrides: Mapping[str, Any],
    oracle: Path | None,
    console: Console,
    material: str | None = None,
) -> dict[str, Any]:
    """Read the evaluation of a model from its folder, or run it."""
    path = folder / "eval" / f"{Path(suite).stem}.json"
    if not path.is_file():
        console.print(f"measuring {name}", highlight=False)
        wanted = EvalRecipe(
            model=model,
            suite=suite,
            output_dir=str(folder),
            controls=ControlsConfig(oracle=None if oracle is None else str(oracle)),
            overrides=dict(overrides),
            data_dir=material,
        )
        evaluate(wanted, console=console)
        gc.collect()
    results: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return results


def row_of(results: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    """One row of the table. Values that the suite does not measure are None."""

    def metric(part: str, name: str) -> float | None:
        found = results["sets"].get(part, {}).get("metrics", {}).get(name)
        return None if found is None or found["value"] is None else float(found["value"])

    quality = (results.get("forget_quality") or {}).get("forget", {}).get("arithmetic")
    capability = results.get("capability")
    return {
        "forget_probability": metric("forget", "probability"),
        "forget_quality": None if quality is None else quality["pvalue"],
        "retain_probability": metric("retain", "probability"),
        "retain_rouge": metric("retain", "rougeL_recall"),
        "capability": None if not capability else float(capability["acc"]["value"]),
        "seconds": None if run is None else run["seconds"],
        "steps": None if run is None else run["steps"],
        "reason": None if run is None else run["reason"],
    }


def reaches(row: Mapping[str, Any], oracle: Mapping[str, Any], target: Mapping[str, Any]) -> bool | None:
    """Whether a method reaches the oracle's forget probability and keeps the target's retain ROUGE-L; None if not measured."""
    needed = (row["forget_probability"], oracle["forget_probability"], row["retain_rouge"], target["retain_rouge"])
    if any(value is None for value in needed):
        return None
    forgets = row["forget_probability"] <= oracle["forget_probability"] + CLOSE
    return bool(forgets and row["retain_rouge"] >= KEPT * target["retain_rouge"])


def markdown(rows: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The table in Markdown, with the command that produced it."""
    lines = [
        f"Made by `{command}`. *Reaches*: forget probability within {CLOSE} of the oracle's, with retain ROUGE-L of at least "
        f"{KEPT} of the target's. Forget quality: p-value of a Kolmogorov–Smirnov test against the oracle.",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, row in rows.items():
        if row.get("failed"):
            lines.append(f"| {name} | failed: {row['failed']} |" + " |" * (len(COLUMNS) - 1))
            continue
        capability = None if row["capability"] is None else 100 * row["capability"]
        cells = [
            _number(row["forget_probability"], 3),
            "–" if row["forget_quality"] is None else f"{row['forget_quality']:.2g}",
            _number(row["retain_probability"], 3),
            _number(row["retain_rouge"], 3),
            _number(capability, 1),
            _number(row["seconds"], 0),
            _number(row["steps"], 0),
            {True: "yes", False: "no", None: "–"}[row.get("reaches")],
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def make_table(options: argparse.Namespace, console: Console, command: str) -> dict[str, dict[str, Any]]:
    """Run and evaluate the recipes that are not done yet, and write the table after every row."""
    from llm_forget.train.unlearn import unlearn

    recipes = unlearning_recipes(options.recipes, options.only, options.changes, options.to, options.material)
    first = next(iter(recipes.values()))
    material = first.data_dir
    root = Path(options.to) if options.to else Path(first.output_dir).parent
    suite, overrides = options.suite, options.eval_changes
    rows: dict[str, dict[str, Any]] = {}
    oracle_model = (
        ModelConfig(name=str(Path(options.oracle) / "model"))
        if options.oracle_adapter is None
        else replace(first.model, adapter=str(Path(material or "") / options.oracle_adapter))
    )
    locate_model(oracle_model.name)
    folder = root / "oracle"
    oracle = row_of(measured("oracle", oracle_model, folder, suite, overrides, None, console, material), None)
    known = folder / "eval" / f"{Path(suite).stem}.json"
    target = row_of(measured("target", first.model, root / "target", suite, overrides, known, console, material), None)
    rows = {"target": target, "oracle": oracle}
    for name, recipe in recipes.items():
        run = Path(recipe.output_dir)
        try:
            if not (run / "result.json").is_file():
                console.rule(name)
                unlearn(replace(recipe, overwrite=False), console)
                gc.collect()
            results = measured(
                name, model_after(recipe, run, root / "merged-target"), run, suite, overrides, known, console, material
            )
            row = row_of(results, json.loads((run / "result.json").read_text("utf-8")))
            rows[name] = {**row, "reaches": reaches(row, oracle, target)}
        except UserError as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
        write_json(root / "methods.json", {"command": command, "rows": rows})
        write_text(root / "methods.md", markdown(rows, command))
    console.print(f"{root / 'methods.md'} and methods.json", highlight=False)
    return rows


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help="a folder of recipes: recipes/demo")
    parser.add_argument("--suite", required=True, help="name or file of a suite: demo, mine.yaml")
    parser.add_argument("--oracle", default=None, help="the oracle's run folder, which holds model/")
    parser.add_argument("--oracle-adapter", default=None, help="the oracle as an adapter on the recipes' base model")
    parser.add_argument(
        "--material", default=os.environ.get("LLM_FORGET_MATERIAL") or None, help="folder with data and adapters"
    )
    parser.add_argument("--only", default="", help="names of recipes, separated by commas")
    parser.add_argument("--to", default=None, help="a folder for all runs and the table, instead of the recipes' own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change every recipe")
    parser.add_argument("--eval-set", action="append", default=[], metavar="KEY=VALUE", help="change the suite")
    options = parser.parse_args(argv)
    if (options.oracle is None) == (options.oracle_adapter is None):
        raise RecipeError("give one of --oracle and --oracle-adapter")
    options.only = [name for name in options.only.split(",") if name]
    options.changes = dict(pair.split("=", 1) for pair in options.set)
    options.eval_changes = {
        key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in options.eval_set)
    }
    return options


def main(argv: list[str]) -> None:
    """Parse the options and write the table."""
    make_table(_options(argv), Console(stderr=True), " ".join(["python scripts/method_table.py", *argv]))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
