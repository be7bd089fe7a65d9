"""Run a suite on a loaded model. One function computes each section of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.data.examples import Example
from llm_forget.evaluation.capability.benchmarks import run_benchmarks
from llm_forget.evaluation.capability.local_task import run_capability
from llm_forget.evaluation.controls import check_controls, side_by_side
from llm_forget.evaluation.leak import measure_leak
from llm_forget.evaluation.membership import (
    PREFIX,
    Attacked,
    AttackPlan,
    check_attacks,
    measure_attacks,
    measure_privleak,
    plan_attacks,
)
from llm_forget.evaluation.passes.asking import is_served
from llm_forget.evaluation.passes.cache import Cache, context_digest, model_context
from llm_forget.evaluation.passes.meter import Meter
from llm_forget.evaluation.results import as_json
from llm_forget.evaluation.running_text import measure_text, read_text
from llm_forget.evaluation.schema import SCHEMA, check_results
from llm_forget.evaluation.sets import (
    Loaded,
    Measured,
    is_forget,
    make_metrics,
    measure_set,
    read_set,
    set_digest,
    set_results,
)
from llm_forget.evaluation.suite import LoadedSuite, Suite, check_packages
from llm_forget.evaluation.tokens import Floats
from llm_forget.evaluation.verdict import verdict
from llm_forget.evaluation.whole_sets import (
    make_aggregates,
    measure_aggregates,
    measure_forget_quality,
    measure_utility,
    suite_scores,
)
from llm_forget.model.served import LISTED
from llm_forget.utils.digests import json_digest


@dataclass(frozen=True)
class _Run:
    """A running evaluation.

    Attributes:
        suite: what to measure.
        loaded: the model and its settings.
        examples: set → its examples.
        controls: role → this suite's result for the control.
        asked: the start of the result: ``schema``, ``suite``, ``settings``, and ``sets`` with only ``digest`` and
            ``forget``.
    """

    suite: Suite
    loaded: Loaded
    examples: Mapping[str, Sequence[Example]]
    controls: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, Any]


def run_suite(
    suite: Suite,
    model: Any,
    tokenizer: Any,
    *,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    target_model: Any = None,
    accelerator: Any = None,
    console: Any = None,
    keep_text: bool = False,
    cache: Path | None = None,
    in_memory: Mapping[str, Sequence[Example]] | None = None,
    files: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Measure everything that a suite asks for. Each answer is scored once, and each prompt is answered once.

    Args:
        suite: what to measure.
        model: a causal language model on its device, or a ``ServedModel`` with its access found out.
        tokenizer: its tokenizer.
        controls: role (target, oracle, sham) → this function's result for the control on the same suite. The result
            includes their aggregates. Forget quality and PrivLeak need the oracle's.
        target_model: the model before unlearning, for the KL to it; None for ``model`` with its adapter disabled.
        accelerator: an ``accelerate.Accelerator``, for several processes.
        console: a ``rich.console.Console`` for progress messages.
        keep_text: store generated answers in the result and the cache; they may contain the forgotten data.
        cache: a folder for computed values, reused for the same model, data and settings; None for no cache.
        in_memory: set → its examples, for sets that are already in memory; their ``data.path`` is only used in messages.
        files: digests of the files that the model was loaded from, for the result: ``adapter`` and ``base``.

    Returns:
        A dictionary for JSON (None instead of NaN): ``schema``, ``suite``, ``settings``, ``model``, ``sets`` with aggregates and
        scores by example id, ``forget_quality``, ``model_utility``, ``attacks``, ``privleak``, ``leak``, ``aggregates``,
        ``perplexity``, ``kl_to_target``, ``capability``, ``benchmarks``, ``controls``, ``verdict``, ``warnings`` and
        ``seconds``; see ``evaluation/schema.py``. It has no text of the data unless ``keep_text``.

    Raises:
        UserError: a package, file or control is missing or does not fit; found before any computation if possible.
    """
    metrics, aggregates = make_metrics(suite.metrics), make_aggregates(suite.aggregates)
    controls = dict(controls or {})
    for role, control in controls.items():
        check_results(control, f"the result given for the {role}")
    plan = plan_attacks(suite.attacks, suite.sets)
    check_attacks(plan, model)
    check_packages(suite)
    notes: list[str] = []
    examples = {name: read_set(name, one, (in_memory or {}).get(name), notes) for name, one in suite.sets.items()}
    text = None if suite.perplexity is None else read_text(suite.perplexity.path)
    meter = Meter(console, 1 if accelerator is None else accelerator.num_processes)
    loaded = Loaded(model, tokenizer, suite.encoding, suite.generation, suite.batch_tokens, accelerator)
    loaded = replace(loaded, meter=meter, keep_text=keep_text, target=target_model)
    context = model_context(model, tokenizer)
    run = _Run(suite, _with_cache(loaded, cache, context), examples, controls, _asked(suite, examples))
    left_out = suite.left_out if isinstance(suite, LoadedSuite) else ()
    warnings = [*left_out, *notes, *check_controls(run.asked, controls)]

    measured = {}
    for name, config in suite.sets.items():
        with meter.part(name):
            measured[name] = measure_set(name, config, examples[name], metrics, run.loaded)
    warnings += [f"{name}: {warning}" for name, found in measured.items() for warning in found.warnings]
    if is_served(model):
        warnings.append(f"behind a server: entropy and Min-K%++ are from the {LISTED} likeliest tokens of each place")
    if not loaded.has_target and True in suite.kl_asked:
        missing = "no target was given, and the model has no adapter to disable"
        warnings.append(f"no KL to the target: {'a server gives no distributions' if is_served(model) else missing}")
    oracle = controls.get("oracle")
    quality = measure_forget_quality(run.asked, measured, oracle, controls.get("target"))
    utility = measure_utility(suite.sets, measured)
    attacked = _attacks(run, plan, measured)
    privleak, more = measure_privleak(attacked, run.asked, oracle)
    warnings += more
    scores = _scores(measured, attacked)
    known = suite_scores(run.asked, scores, controls, suite.seed)
    numbers, more = measure_aggregates(aggregates, known, named=suite.aggregates is not None)
    warnings += more
    leak, leak_samples = _leak(run)
    results = {
        **run.asked,
        "model": {"weights": _weights(context), **(files or {})},
        "sets": _sets(run, measured, attacked, leak_samples),
        "controls": side_by_side(controls),
        "forget_quality": quality,
        "model_utility": utility,
        "attacks": None if attacked is None else attacked.section,
        "privleak": privleak,
        "leak": leak,
        "aggregates": numbers,
        **_text(run, text),
        "capability": _capability(run),
        "benchmarks": _benchmarks(run),
        "warnings": warnings,
        "seconds": meter.seconds,
    }
    if run.loaded.cache is not None and run.loaded.cache.problem is not None:
        warnings.append(run.loaded.cache.problem)
    plain: dict[str, Any] = as_json(results)
    plain["verdict"] = verdict(plain, **controls)
    return plain


def _weights(context: Mapping[str, Any] | None) -> str | None:
    """Digest of the weights that were measured and of the state of their adapters; None for a sharded model."""
    return None if context is None else json_digest([context["weights"], context["adapters"]])


def _with_cache(loaded: Loaded, folder: Path | None, context: Mapping[str, Any] | None) -> Loaded:
    """Add a cache if a folder is given and this process holds the whole model."""
    if folder is None or context is None:
        return loaded
    target = None if loaded.target is None else context_digest(loaded.target, loaded.tokenizer)
    return replace(loaded, cache=Cache(folder, context, loaded.meter.note), target_digest=target)


def _asked(suite: Suite, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    sets = {
        name: {"digest": set_digest(config, examples[name]), "forget": is_forget(name, config)}
        for name, config in suite.sets.items()
    }
    return {"schema": SCHEMA, "suite": suite.name, "settings": _settings(suite), "sets": sets}


def _settings(suite: Suite) -> dict[str, Any]:
    """The settings of the measurement, without paths, which differ between machines."""
    sets = {name: {"stride": config.stride, "limit": config.limit} for name, config in suite.sets.items()}
    return {
        "encoding": asdict(suite.encoding),
        "generation": asdict(suite.generation),
        "sets": sets,
        "batch_tokens": suite.batch_tokens,
        "seed": suite.seed,
        "interval": {"level": 0.95, "method": "over examples: Wilson for rates, t with Hall's correction otherwise"},
    }


def _sets(
    run: _Run,
    measured: Mapping[str, Measured],
    attacked: Attacked | None,
    leak_samples: Mapping[str, Sequence[int | None]],
) -> dict[str, Any]:
    """The ``sets`` section with the scores of all examples; attacks have the label ``attack_<name>``."""
    found = {}
    for name, one in measured.items():
        more: dict[str, Any] = {**_attack_scores(name, attacked)}
        if name in leak_samples:
            more["leak_samples"] = leak_samples[name]
        entry = set_results(one, more, keep_text=run.loaded.keep_text)
        found[name] = {**entry, "digest": run.asked["sets"][name]["digest"]}
    return found


def _scores(measured: Mapping[str, Measured], attacked: Attacked | None) -> dict[str, dict[str, Floats]]:
    """Set → label → scores of metrics and attacks."""
    return {name: {**one.by_metric, **_attack_scores(name, attacked)} for name, one in measured.items()}


def _attack_scores(name: str, attacked: Attacked | None) -> dict[str, Floats]:
    own = {} if attacked is None else attacked.scores.get(name, {})
    return {PREFIX + label: scores for label, scores in own.items()}


def _attacks(run: _Run, plan: AttackPlan | None, measured: Mapping[str, Measured]) -> Attacked | None:
    if plan is None:
        return None
    with run.loaded.meter.part("attacks"):
        return measure_attacks(plan, run.asked, measured, run.examples, run.loaded)


def _leak(run: _Run) -> tuple[dict[str, Any] | None, dict[str, list[int | None]]]:
    sampling = run.suite.generation.sampling
    if sampling is None:
        return None, {}
    asking = {
        name: run.examples[name]
        for name, config in run.suite.sets.items()
        if is_forget(name, config) and config.generate
    }
    with run.loaded.meter.part("leak"):
        found, counts = measure_leak(sampling, asking, run.loaded, run.suite.seed)
    return found or None, counts


def _text(run: _Run, text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"perplexity": None, "kl_to_target": None}
    if run.suite.perplexity is None or text is None:
        return found
    with run.loaded.meter.part("perplexity"):
        return found | measure_text(run.suite.perplexity, text, run.loaded)


def _capability(run: _Run) -> dict[str, Any] | None:
    if run.suite.capability is None:
        return None
    loaded = run.loaded
    with loaded.meter.part("capability"):
        found = run_capability(
            loaded.model,
            loaded.tokenizer,
            accelerator=loaded.accelerator,
            cache=loaded.cache,
            **asdict(run.suite.capability),
        )
    return {**asdict(found), "n": found.acc.n}


def _benchmarks(run: _Run) -> dict[str, Any]:
    if run.suite.benchmarks is None:
        return {}
    loaded = run.loaded
    with loaded.meter.part("benchmarks"):
        return run_benchmarks(
            run.suite.benchmarks,
            loaded.model,
            loaded.tokenizer,
            accelerator=loaded.accelerator,
            cache=loaded.cache,
        )
