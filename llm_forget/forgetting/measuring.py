"""Measure an order's models on the same rows: the model before, the oracle, and the model after."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_forget.config import ModelConfig
from llm_forget.errors import RecipeError
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import ControlsConfig, EvalRecipe
from llm_forget.evaluation.results import open_results, read_results
from llm_forget.forgetting.found import Found
from llm_forget.forgetting.work import MOST_MEASURED
from llm_forget.utils.safe_json import NotPlainJson

SUITE = "custom"
RESULTS = Path("eval") / f"{SUITE}.json"
_MOST_NEW = 128


def measure(found: Found, console: Console) -> dict[str, dict[str, Any]]:
    """Measure oracle, target and the adapted model. What was measured before is read.

    Returns:
        Role (oracle, target, model) → the results.
    """
    order, recipe = found.order, found.recipe
    models = {"target": recipe.model, "model": replace(recipe.model, adapter=str(order.run / "adapter"))}
    if recipe.adapter is None:
        models["model"] = replace(recipe.model, name=str(order.run / "model"), adapter=None)
    if order.oracle is not None:
        models = {"oracle": model_at(order.oracle, recipe.model), **models}
    places = {role: order.run if role == "model" else order.folder / role for role in models}
    results: dict[str, dict[str, Any]] = {}
    for role, model in models.items():
        controls = {one: str(places[one] / RESULTS) for one in results}
        results[role] = _measured(found, model, places[role], controls, console)
    return results


def _measured(
    found: Found, model: ModelConfig, place: Path, controls: Mapping[str, str], console: Console
) -> dict[str, Any]:
    file = place / RESULTS
    if file.is_file():
        try:
            open_results(file)
            return read_results(file)
        except (RecipeError, NotPlainJson, OSError):
            file.unlink()
    recipe = EvalRecipe(
        model=model,
        suite=SUITE,
        output_dir=str(place),
        controls=ControlsConfig(**controls),
        overrides=_overrides(found),
    )
    results = evaluate(recipe, console=console)
    gc.collect()
    return results


def _overrides(found: Found) -> dict[str, Any]:
    """The suite's sets with the order's rows, and without what no installed package can measure."""
    written = "rouge_score" not in found.without
    sets: dict[str, Any] = {"forget": {"data": asdict(found.recipe.data.forget), "generate": written}}
    kept = {"retain": (found.recipe.data.retain, len(found.sets.retain))}
    if found.order.neighbours is not None:
        kept["neighbours"] = (replace(found.recipe.data.forget, path=found.order.neighbours), len(found.neighbours))
    for name, (source, rows) in kept.items():
        if source is not None:
            stride = max(1, rows // MOST_MEASURED)
            sets[name] = {
                "data": asdict(source),
                "answers": ["answer"],
                "stride": stride,
                "limit": MOST_MEASURED,
                "generate": written,
            }
    if found.recipe.data.holdout is not None:
        sets["holdout"] = {"data": asdict(found.recipe.data.holdout), "answers": ["answer"], "generate": False}
    changes: dict[str, Any] = {"sets": sets, "encoding": asdict(found.recipe.encoding)}
    longest = max(row.answer_length for row in found.sets.forget)
    changes["generation.max_new_tokens"] = min(_MOST_NEW, max(32, 2 * longest))
    if "lm_eval" in found.without:
        changes["capability"] = None
    return changes


def model_at(place: str, like: ModelConfig) -> ModelConfig:
    """The model of a control: a model folder, a run folder with a model or an adapter, or a hub id.

    Args:
        place: where it is.
        like: the settings to load it with, and the base of an adapter.
    """
    folder = Path(place)
    if (folder / "model").is_dir():
        return replace(like, name=str(folder / "model"), adapter=None)
    if (folder / "adapter").is_dir() and not (folder / "config.json").is_file():
        return replace(like, adapter=str(folder / "adapter"))
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(f"--oracle: {place} is an adapter; merge it into its base (llm-forget merge), and give that")
    return replace(like, name=place, adapter=None, revision=None)
