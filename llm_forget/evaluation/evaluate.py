"""Load a model, run a suite on it, and write the results to its run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from llm_forget.config import ModelConfig
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.capability.benchmarks import check_benchmarks, run_benchmarks
from llm_forget.evaluation.capability.local_task import read_task, run_capability
from llm_forget.evaluation.controls import ROLES
from llm_forget.evaluation.recipe import CapabilityRecipe, EvalRecipe
from llm_forget.evaluation.recount import doubts_about
from llm_forget.evaluation.results import as_json, open_results, write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.schema import SCHEMA
from llm_forget.evaluation.suite import LoadedSuite, Suite, check_suite, load_suite
from llm_forget.model.generate import end_token_ids
from llm_forget.model.load import load_model, load_tokenizer, load_weights
from llm_forget.model.served import LISTED, ServedModel
from llm_forget.utils.endpoint import Endpoint
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import folder_digest
from llm_forget.utils.output import writing
from llm_forget.utils.rank import process_rank
from llm_forget.utils.terminal import echo, plain, say


def evaluate(recipe: EvalRecipe, *, console: Any = None) -> dict[str, Any]:
    """Run a suite on a model and write ``<output_dir>/eval/<suite>.json``.

    The scores of single examples go to a Parquet file in the same folder.

    Args:
        recipe: what to evaluate.
        console: a ``rich.console.Console`` for progress messages.

    Returns:
        The results of ``run_suite``. Every process of a launch gets them; only the main process writes them.

    Raises:
        UserError: something in the recipe or the suite cannot be used; found before the model is loaded if possible.
    """
    suite = load_suite(recipe.suite, _overrides(recipe))
    with _writing_results(recipe.output_dir, suite.name):
        return _evaluate(recipe, suite, console)


def _evaluate(recipe: EvalRecipe, suite: LoadedSuite, console: Any) -> dict[str, Any]:
    read = {role: _read_control(role, path) for role, path in _control_paths(recipe).items()}
    check_suite(suite)
    accelerator = make_accelerator()
    model, tokenizer = _find_model(recipe, accelerator)
    main = accelerator is None or accelerator.is_main_process
    doubts = [f"controls.{role}: {doubt}" for role, (_, found) in read.items() for doubt in found]
    for doubt in doubts if main and console is not None else ():
        say(console, doubt, label="note")
    results = run_suite(
        suite,
        model,
        tokenizer,
        controls={role: control for role, (control, _) in read.items()},
        target_model=_target_model(recipe, suite),
        accelerator=accelerator,
        console=console if main else None,
        keep_text=recipe.keep_text,
        cache=_cache_folder(recipe),
        files=_files(recipe),
    )
    results["warnings"] += doubts
    if main:
        write_results(results, Path(recipe.output_dir) / "eval" / f"{suite.name}.json")
    return results


def _find_model(recipe: EvalRecipe, accelerator: Any) -> tuple[Any, Any]:
    """Load the model, or find it on its server, and load the tokenizer."""
    engine = recipe.engine
    if engine.url is None or engine.served_model is None:
        return load_model(recipe.model)
    if accelerator is not None:
        raise UserError("engine.name is vllm: the server has the devices; start the evaluation in one process")
    tokenizer = load_tokenizer(recipe.model)
    options = ("engine.url", "engine.served_model")
    endpoint = Endpoint(engine.url, engine.served_model, engine.key_variable, options=options, at_once=engine.at_once)
    # plain greedy answers, whatever the model's generation config says
    plain = {"stop_token_ids": list(end_token_ids(None, tokenizer)), "repetition_penalty": 1.0, "top_k": -1}
    served = ServedModel(endpoint, plain)
    served.find_length()
    if not served.find_access(tuple(tokenizer("A few words.")["input_ids"])) or served.listed != LISTED:
        raise UserError(
            f"engine.url: {endpoint.url} does not list the {LISTED} likeliest tokens of a prompt, which the evaluation needs; "
            f"take vLLM, and start it with --max-logprobs {LISTED} or more"
        )
    return served, tokenizer


def _files(recipe: EvalRecipe) -> dict[str, str | None]:
    """What the results state about the files of the model; nothing is known about those of a server."""
    name = recipe.engine.served_model
    return model_files(recipe.model) if name is None else {"served": name}


@contextmanager
def _writing_results(output_dir: str, suite: str) -> Iterator[None]:
    """Context of an evaluation: other suites may be measured for the same folder, but no run may replace it."""
    with writing(output_dir, shared=True), writing(Path(output_dir) / "eval" / f"{suite}.json"):
        yield


def model_files(config: ModelConfig) -> dict[str, str | None]:
    """Digests of the files that a model is loaded from, as results state them; None for what is in no local folder."""
    given = {"adapter": config.adapter, "base": config.name}
    return {name: None if path is None else folder_digest(Path(path)) for name, path in given.items()}


def _target_model(recipe: EvalRecipe, suite: Suite) -> Any:
    """The model before unlearning: the given target, or the adapter's base if the suite needs the KL to it."""
    if recipe.engine.url is not None:
        return None
    before = recipe.target
    if before is None and recipe.model.adapter is not None and any(suite.kl_asked):
        # the adapter is merged into the model, so it cannot be switched off: load the base separately
        before = replace(recipe.model, adapter=None)
    return None if before is None else load_weights(before)


def _overrides(recipe: EvalRecipe) -> dict[str, str]:
    """The recipe's changes to its suite: dotted key → YAML text."""
    changes = dict(recipe.overrides)
    if recipe.data_dir is not None:
        changes["data_dir"] = recipe.data_dir
    changes |= {f"variables.{name}": value for name, value in recipe.variables.items()}
    return {key: yaml.safe_dump(value) for key, value in changes.items()}


def _control_paths(recipe: EvalRecipe) -> dict[str, str]:
    paths = {role: getattr(recipe.controls, role) for role in ROLES}
    return {role: path for role, path in paths.items() if path is not None}


def _read_control(role: str, path: str) -> tuple[dict[str, Any], list[str]]:
    """A control's results, and what makes them doubtful."""
    try:
        stored = open_results(Path(path))
        return stored.with_examples(), doubts_about(stored)
    except UserError as error:
        raise RecipeError(f"controls.{role}: {error}; run this suite on the {role} first") from None


def _cache_folder(recipe: EvalRecipe) -> Path | None:
    if recipe.cache != "auto":
        return None if recipe.cache is None else Path(recipe.cache)
    shared = os.environ.get("LLM_FORGET_CACHE")
    return Path(shared) / "evaluation" if shared else Path(recipe.output_dir) / "eval" / "cache"


def evaluate_capability(recipe: CapabilityRecipe) -> dict[str, Any]:
    """Run only the capability test and write ``<output_dir>/eval/capability-<task>.json``.

    Args:
        recipe: what to evaluate. If it has ``benchmarks``, they run instead (``capability-benchmarks.json``).

    Returns:
        Accuracy with its interval, and whether each question was answered correctly.

    Raises:
        UserError: lm-eval is missing, or the task cannot be used. Checked before the model is loaded.
    """
    require_extra("lm_eval", "the capability test", "eval")
    name = "benchmarks"
    if recipe.benchmarks is None:
        name = read_task(recipe.task, recipe.limit)[0]["task"]
    else:
        check_benchmarks(recipe.benchmarks)
    with _writing_results(recipe.output_dir, f"capability-{name}"):
        return _evaluate_capability(recipe, name)


def _evaluate_capability(recipe: CapabilityRecipe, name: str) -> dict[str, Any]:
    accelerator = make_accelerator()
    model, tokenizer = load_model(recipe.model)
    found: dict[str, Any] = {"schema": SCHEMA, "suite": f"capability-{name}", "settings": {}, "sets": {}}
    found["model"] = model_files(recipe.model)
    if recipe.benchmarks is None:
        one = run_capability(
            model,
            tokenizer,
            task=recipe.task,
            limit=recipe.limit,
            batch_size=recipe.batch_size,
            accelerator=accelerator,
        )
        found["capability"] = {**vars(one), "n": one.acc.n}
    else:
        found["benchmarks"] = run_benchmarks(recipe.benchmarks, model, tokenizer, accelerator=accelerator)
    results: dict[str, Any] = as_json(found)
    if accelerator is None or accelerator.is_main_process:
        write_results(results, Path(recipe.output_dir) / "eval" / f"capability-{name}.json")
    return results


def show(results: Mapping[str, Any], output_dir: str) -> None:
    """Print the aggregates of a result and the name of its file; only the main process prints."""
    if process_rank():
        return
    for line in (*_set_lines(results), *_number_lines(results), *_task_lines(results), *(results.get("verdict") or [])):
        Console().print(plain(line), highlight=False, soft_wrap=not sys.stdout.isatty())
    echo(f"results: {Path(output_dir) / 'eval' / results['suite']}.json")


def _set_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """One block per set, then the membership attacks, PrivLeak and leak@k."""
    for name, found in results.get("sets", {}).items():
        yield from _block(f"{name} (n = {found['n']})", found["metrics"])
    attacks = results.get("attacks")
    if attacks:
        title = f"AUC of the membership attacks ({attacks['members']} against {attacks['nonmembers']})"
        yield from _block(title, attacks["auc"])
    if results.get("privleak"):
        yield _line("PrivLeak (%)", results["privleak"])
    for name, found in (results.get("leak") or {}).items():
        yield from _block(name, {f"leak@{k}": entry for k, entry in found["at"].items()})


def _number_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that belong to no single set."""
    found: dict[str, Any] = {}
    if results.get("kl_to_target"):
        found["KL to the target on text"] = results["kl_to_target"]
    for definition, utility in (results.get("model_utility") or {}).items():
        found[f"model utility ({definition})"] = utility
    found |= results.get("aggregates") or {}
    if results.get("perplexity"):
        found["perplexity"] = results["perplexity"]
    if found:
        yield from _block("all sets", found)


def _task_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """One block per lm-eval task."""
    for task, found in (results.get("benchmarks") or {}).items():
        yield from _block(f"{task} (n = {next(iter(found.values()))['n']})", found)
    capability = results.get("capability")
    if capability:
        accuracies = {label: capability[label] for label in ("acc", "acc_norm")}
        yield from _block(f"{capability['task']} (n = {capability['n']})", accuracies)


def _block(title: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A title, and below it one number per line."""
    width = max((len(label) for label in entries), default=0)
    yield title
    for label, entry in entries.items():
        yield "  " + _line(f"{label:{width}}", entry)


def _line(label: str, entry: Mapping[str, Any]) -> str:
    """A number with its interval, and the number of examples that could not be scored."""
    if entry["value"] is None:
        return f"{label}  not scored"
    shown = f"{label}  {entry['value']:.3f}"
    if entry["low"] is not None:
        shown += f"  [{entry['low']:.3f}, {entry['high']:.3f}]"
    return shown + (f"  ({entry['n_nan']} not scored)" if entry["n_nan"] else "")


def make_accelerator() -> Any:
    """Create an Accelerator if there are several processes; None for one process, which needs no set-up."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator()
