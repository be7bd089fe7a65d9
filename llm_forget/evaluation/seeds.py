"""Several seeds of one recipe: the mean of each number over the runs, and how far the runs lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llm_forget.errors import UserError
from llm_forget.evaluation.compare import check_same_set
from llm_forget.evaluation.results import read_results
from llm_forget.utils.files import write_json

# What a recipe may differ in and still be the same one.
_FREE = ("seed", "output_dir", "overwrite")
_SECTIONS = (
    "forget_quality",
    "model_utility",
    "attacks",
    "privleak",
    "leak",
    "aggregates",
    "perplexity",
    "kl_to_target",
    "capability",
)
_VALUES = ("value", "pvalue")


@dataclass(frozen=True)
class Spread:
    """One number over several runs.

    Attributes:
        mean: over the runs that have it; NaN for none.
        spread: standard deviation over the runs, with n − 1; NaN for fewer than two.
        lowest: of the runs.
        highest: of the runs.
        n: runs that have it.
        n_nan: runs in which it could not be scored.
    """

    mean: float
    spread: float
    lowest: float
    highest: float
    n: int
    n_nan: int


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Mean and spread of every number over runs of several seeds.

    This is the spread of training; the intervals in a result are over examples, of one run.

    Args:
        results: of one suite on each run, at least two.

    Returns:
        Dotted name (``forget.probability``, ``model_utility.arithmetic``) → mean and spread. For 1, 2 and 6 the mean is 3
        and the spread √7.

    Raises:
        UserError: fewer than two, or results of other suites, sets or encodings.
    """
    if len(results) < 2:
        raise UserError(f"{len(results)} results were given; a spread over seeds needs at least two")
    first = results[0]
    for other in results[1:]:
        if other["suite"] != first["suite"] or other["sets"].keys() != first["sets"].keys():
            raise UserError(
                f"results of {first['suite']} and {other['suite']} have no common mean; give those of one suite"
            )
        for name in first["sets"]:
            check_same_set(first, other, name, "other run")
    columns: dict[str, list[float]] = {}
    for one in results:
        for name, value in numbers(one):
            columns.setdefault(name, []).append(np.nan if value is None else float(value))
    return {name: spread_of(values) for name, values in columns.items()}


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and spread of one number, without the NaN among them."""
    scored = np.array([value for value in values if not np.isnan(value)])
    n_nan = len(values) - len(scored)
    if len(scored) == 0:
        return Spread(np.nan, np.nan, np.nan, np.nan, 0, n_nan)
    spread = float(scored.std(ddof=1)) if len(scored) > 1 else np.nan
    return Spread(float(scored.mean()), spread, float(scored.min()), float(scored.max()), len(scored), n_nan)


def numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number of a result with its dotted name."""
    for name, found in results["sets"].items():
        yield from _walk(found["metrics"], name)
    for section in _SECTIONS:
        if isinstance(results.get(section), Mapping):
            yield from _walk({section: results[section]}, "")
    yield from _walk(results.get("benchmarks") or {}, "benchmarks")


def _walk(entries: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, entry in entries.items():
        if key in ("correct", "components") or not isinstance(entry, Mapping):
            continue
        name = f"{prefix}.{key}" if prefix else str(key)
        kept = next((known for known in _VALUES if known in entry), None)
        if kept is None:
            yield from _walk(entry, name)
        else:
            yield name, entry[kept]


def read_seeds(folders: Sequence[Path], suite: str) -> tuple[dict[str, Spread], list[int | None]]:
    """Mean and spread over run folders, which must hold one recipe with several seeds.

    Args:
        folders: run folders.
        suite: the suite's name.

    Returns:
        The numbers, and each run's seed (None where the folder holds no recipe).

    Raises:
        UserError: a folder without results of the suite, a seed twice, or recipes that differ in more than the seed.
    """
    results = [read_results(folder / "eval" / f"{suite}.json") for folder in folders]
    recipes = [_recipe(folder) for folder in folders]
    seeds = [None if recipe is None else recipe.get("seed") for recipe in recipes]
    known = [seed for seed in seeds if seed is not None]
    if len(set(known)) < len(known):
        raise UserError(f"the seeds of the runs are {known}: give each seed once")
    plain = [{key: value for key, value in (recipe or {}).items() if key not in _FREE} for recipe in recipes]
    for folder, other in zip(folders[1:], plain[1:], strict=True):
        if other != plain[0]:
            keys = sorted(key for key in {*other, *plain[0]} if other.get(key) != plain[0].get(key))
            raise UserError(
                f"{folders[0]} and {folder} are runs of two recipes: they differ in {', '.join(keys)}; only the seed may differ"
            )
    return over_seeds(results), seeds


def write_seeds(found: Mapping[str, Spread], seeds: Sequence[int | None], suite: str, path: Path) -> None:
    """Write the numbers over seeds as JSON."""
    write_json(
        path, {"suite": suite, "seeds": list(seeds), "numbers": {name: vars(one) for name, one in found.items()}}
    )


def _recipe(folder: Path) -> dict[str, Any] | None:
    file = folder / "recipe.yaml"
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found if isinstance(found, dict) else None
