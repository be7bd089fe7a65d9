"""Load a model, run a suite on it, and write what was measured into its run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_forget.errors import RecipeError
from llm_forget.evaluation.capability import read_task, run_capability
from llm_forget.evaluation.extras import require
from llm_forget.evaluation.recipe import CapabilityRecipe, EvalRecipe
from llm_forget.evaluation.suite import SCHEMA, as_json, load_suite, run_suite, write_results
from llm_forget.models import load_model


def evaluate(recipe: EvalRecipe, *, console: Any = None) -> dict[str, Any]:
    """Run a suite on a model and write ``<output_dir>/eval/<suite>.json``.

    Args:
        recipe: what to evaluate.
        console: a ``rich.console.Console`` to say on what is being done.

    Returns:
        The results, as ``run_suite`` gives them; every process of a launch has them, the first one writes.

    Raises:
        UserError: something in the recipe or the suite cannot be used; as far as possible before the model is loaded.
    """
    suite = load_suite(recipe.suite, {key: yaml.safe_dump(value) for key, value in recipe.overrides.items()})
    oracle = None if recipe.oracle is None else _read_results(Path(recipe.oracle))
    accelerator = make_accelerator()
    model, tokenizer = load_model(recipe.model)
    main = accelerator is None or accelerator.is_main_process
    results = run_suite(
        suite,
        model,
        tokenizer,
        oracle_results=oracle,
        target_model=None if recipe.target is None else load_model(recipe.target)[0],
        accelerator=accelerator,
        console=console if main else None,
        keep_text=recipe.keep_text,
    )
    if main:
        write_results(results, Path(recipe.output_dir) / "eval" / f"{suite.name}.json")
    return results


def evaluate_capability(recipe: CapabilityRecipe) -> dict[str, Any]:
    """Run the capability test alone and write ``<output_dir>/eval/capability-<task>.json``.

    Args:
        recipe: what to evaluate.

    Returns:
        Accuracy, interval and which questions were answered rightly.

    Raises:
        UserError: lm-eval is missing, or the task cannot be used; before the model is loaded.
    """
    require("lm_eval", "the capability test")
    config, _ = read_task(recipe.task, recipe.limit)
    accelerator = make_accelerator()
    model, tokenizer = load_model(recipe.model)
    found = run_capability(
        model,
        tokenizer,
        task=recipe.task,
        limit=recipe.limit,
        batch_size=recipe.batch_size,
        accelerator=accelerator,
    )
    results: dict[str, Any] = as_json({"schema": SCHEMA, "capability": {**vars(found), "n": found.acc.n}})
    if accelerator is None or accelerator.is_main_process:
        write_results(results, Path(recipe.output_dir) / "eval" / f"capability-{config['task']}.json")
    return results


def show(results: Mapping[str, Any]) -> None:
    """Print the aggregates of a result, by the first process alone."""
    if int(os.environ.get("RANK", "0")):
        return
    for name, found in results.get("sets", {}).items():
        print(f"{name} (n = {found['n']}): " + ", ".join(_line(*item) for item in found["metrics"].items()))
    attacks = results.get("attacks")
    if attacks:
        shown = ", ".join(_line(*item) for item in attacks["auc"].items())
        print(f"AUC of attacks that tell {attacks['members']} from {attacks['nonmembers']}: {shown}")
    if results.get("privleak"):
        print(_line("PrivLeak (%)", results["privleak"]))
    for name, found in (results.get("leak") or {}).items():
        print(f"{name}: " + ", ".join(_line(f"leak@{k}", entry) for k, entry in found["at"].items()))
    if results.get("kl_to_target"):
        print(_line("KL to the target on text", results["kl_to_target"]))
    for definition, utility in (results.get("model_utility") or {}).items():
        print(_line(f"model utility ({definition})", utility))
    if results.get("perplexity"):
        print(_line("perplexity", results["perplexity"]))
    capability = results.get("capability")
    if capability:
        accuracies = ", ".join(_line(label, capability[label]) for label in ("acc", "acc_norm"))
        print(f"{capability['task']} (n = {capability['n']}): {accuracies}")
    for line in results.get("verdict") or []:
        print(line)


def _line(label: str, entry: Mapping[str, Any]) -> str:
    """A number with its interval, and how many could not be scored."""
    if entry["value"] is None:
        return f"{label} not scored"
    shown = f"{label} {entry['value']:.3f}"
    if entry["low"] is not None:
        shown += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return shown + (f" ({entry['n_nan']} not scored)" if entry["n_nan"] else "")


def make_accelerator() -> Any:
    """An Accelerator when there are several processes, else None: one process needs none, and none of its set-up."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator()


def _read_results(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"oracle: {path} cannot be read ({error.strerror}); give the oracle's eval/<suite>.json"
        ) from None
    except ValueError:
        raise RecipeError(f"oracle: {path} is not JSON; give the oracle's eval/<suite>.json") from None
    if not isinstance(found, dict):
        raise RecipeError(f"oracle: {path} holds no results; give the oracle's eval/<suite>.json")
    return found
