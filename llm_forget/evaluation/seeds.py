"""Combine runs of one recipe with different seeds: mean and spread of every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.compare import check_same_set
from llm_forget.evaluation.results import named_scores, read_results
from llm_forget.utils.files import write_json
from llm_forget.utils.safe_yaml import NotPlainYaml, read_yaml

# Recipe fields that may differ between the runs.
_FREE = ("seed", "output_dir", "overwrite")


@dataclass(frozen=True)
class Spread:
    """One number over several runs.

    Attributes:
        mean: mean over the runs that have the number; NaN if none has it.
        spread: sample standard deviation over these runs (divisor n − 1); NaN for fewer than two.
        lowest: lowest value.
        highest: highest value.
        n: number of runs that have the number.
        n_nan: number of runs in which it could not be scored.
    """

    mean: float
    spread: float
    lowest: float
    highest: float
    n: int
    n_nan: int


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Compute mean and spread of every number over runs with different seeds.

    The spread is over training runs. The intervals in a result are over the examples of one run.

    Args:
        results: each run's result on the same suite, at least two.

    Returns:
        Dotted name (``forget.probability``, ``model_utility.arithmetic``) → mean and spread. For 1, 2 and 6 the mean is 3
        and the spread √7.

    Raises:
        UserError: there are fewer than two results, or they differ in suite, sets or encoding.
    """
    if len(results) < 2:
        raise UserError(f"{len(results)} results were given; a spread over seeds needs at least two")
    first = results[0]
    for other in results[1:]:
        if other["suite"] != first["suite"] or other["sets"].keys() != first["sets"].keys():
            raise UserError(
                f"results of {first['suite']} and {other['suite']} have no common mean; give results of the same suite"
            )
        for name in first["sets"]:
            check_same_set(first, other, name, "other run")
    columns: dict[str, list[float]] = {}
    for one in results:
        for name, score in named_scores(one).items():
            columns.setdefault(name, []).append(np.nan if score.value is None else float(score.value))
    return {name: spread_of(values) for name, values in columns.items()}


def spread_of(values: Sequence[float]) -> Spread:
    """Compute mean and spread of one number, ignoring NaN."""
    scored = np.array([value for value in values if not np.isnan(value)])
    n_nan = len(values) - len(scored)
    if len(scored) == 0:
        return Spread(np.nan, np.nan, np.nan, np.nan, 0, n_nan)
    spread = float(scored.std(ddof=1)) if len(scored) > 1 else np.nan
    return Spread(float(scored.mean()), spread, float(scored.min()), float(scored.max()), len(scored), n_nan)


def read_seeds(folders: Sequence[Path], suite: str) -> tuple[dict[str, Spread], list[int | None]]:
    """Read the run folders of one recipe with different seeds, and compute mean and spread.

    Args:
        folders: run folders.
        suite: the suite's name.

    Returns:
        The numbers, and each run's seed (None if the folder holds no recipe).

    Raises:
        UserError: a folder has no results of the suite, a seed occurs twice, or the recipes differ in more than the seed.
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
                f"{folders[0]} and {folder} are runs of two recipes: they differ in {', '.join(keys)}; "
                "give runs that differ only in the seed"
            )
    return over_seeds(results), seeds


def write_seeds(found: Mapping[str, Spread], seeds: Sequence[int | None], suite: str, path: Path) -> None:
    """Write the numbers over seeds as JSON."""
    write_json(
        path, {"suite": suite, "seeds": list(seeds), "numbers": {name: vars(one) for name, one in found.items()}}
    )


def _recipe(folder: Path) -> dict[str, Any] | None:
    file = folder / "recipe.yaml"
    try:
        found = read_yaml(file) if file.is_file() else None
    except NotPlainYaml as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    return found if isinstance(found, dict) else None
