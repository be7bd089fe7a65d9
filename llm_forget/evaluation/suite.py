"""A suite: which sets, metrics and tests make up an evaluation, read from YAML and run on a loaded model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import yaml
from pydantic import ConfigDict

from llm_forget.config import build, load_recipe
from llm_forget.data.encode import Encoded, EncodingConfig, encode
from llm_forget.data.examples import Example, example_id
from llm_forget.digests import json_digest
from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.evaluation.aggregate import RESAMPLES
from llm_forget.evaluation.capability import read_task, run_capability
from llm_forget.evaluation.compare import check_same_set, column
from llm_forget.evaluation.extras import require
from llm_forget.evaluation.leak import measure_leak
from llm_forget.evaluation.membership import AttacksConfig, measure_attacks, measure_privleak, plan_attacks
from llm_forget.evaluation.metrics.forget_quality import forget_quality
from llm_forget.evaluation.metrics.kl_to_target import text_kl
from llm_forget.evaluation.metrics.model_utility import model_utility
from llm_forget.evaluation.metrics.perplexity import perplexity, sliding_windows
from llm_forget.evaluation.score import score_encoded
from llm_forget.evaluation.sets import (
    GenerationConfig,
    Loaded,
    Measured,
    SetConfig,
    is_forget,
    make_metrics,
    measure_set,
    read_set,
    set_results,
    target_kl,
)
from llm_forget.evaluation.verdict import verdict
from llm_forget.files import write_json
from llm_forget.shipped import shipped

SCHEMA = 1
_DEFINITIONS = ("arithmetic", "geometric")


@dataclass(frozen=True)
class PerplexityConfig:
    """Perplexity on running text."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # A text file.
    path: str = "eval/capability/neutral.txt"
    window: int = 512
    # Tokens that each window scores; the rest of it is context.
    stride: int = 256
    # Only the first so many tokens; null for all.
    max_tokens: int | None = None
    # Also compare with the model before unlearning, token by token: a forward of each.
    kl: bool = False


@dataclass(frozen=True)
class CapabilityConfig:
    """Accuracy on a multiple-choice task, by lm-eval."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # A task that comes with the package, or the path of an lm-eval task file.
    task: str = "general_knowledge"
    limit: int | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class Suite:
    """One evaluation."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # forget, retain, neighbour, holdout, …: what is measured, by name.
    sets: dict[str, SetConfig]
    # Names, or {name: rouge, part: f1}; null for every metric that a set's data allow.
    metrics: list[str | dict[str, Any]] | None = None
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    # null switches either off.
    perplexity: PerplexityConfig | None = None
    capability: CapabilityConfig | None = None
    # Membership inference where there is a set called forget and one called holdout, or the two that it names; null for none.
    attacks: AttacksConfig | None = field(default_factory=AttacksConfig)
    # Of the bootstrap intervals, and of samples.
    seed: int = 0
    # Tokens of a scoring batch with its padding.
    batch_tokens: int = 2048
    # The name of the result file; the suite file's own where it is left out.
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.sets:
            raise ValueError("sets is empty; name at least one, for example forget")
        if self.attacks is not None:
            self.attacks.sets_among(self.sets)


def load_suite(path: str, overrides: Mapping[str, str] | None = None) -> Suite:
    """Read and check a suite.

    Args:
        path: a YAML file, or the name of a suite that comes with the package, such as ``demo``.
        overrides: dotted key → YAML text, for example ``{"sets.forget.limit": "8"}``.

    Raises:
        RecipeError: no such suite, or every mistake in it.
    """
    file = Path(path) if path.endswith((".yaml", ".yml")) else shipped(f"eval/suites/{path}.yaml")
    if not file.is_file() and not shipped(str(file)).is_file():
        known = ", ".join(sorted(one.stem for one in shipped("eval/suites").glob("*.yaml")))
        raise RecipeError(f"the suite {path} does not exist; give a .yaml file, or one that comes along: {known}")
    _check_sets(file if file.is_file() else shipped(str(file)), path)
    suite = load_recipe(Suite, file, overrides)
    return suite if suite.name else load_recipe(Suite, file, {**(overrides or {}), "name": file.stem})


def _check_sets(file: Path, path: str) -> None:
    """Unknown keys in the sets, with the nearest known ones: a mapping of names hides them from the general check."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    sets = values.get("sets") if isinstance(values, dict) else None
    for name, entry in sets.items() if isinstance(sets, dict) else []:
        if isinstance(entry, dict):
            build(SetConfig, entry, f"{path}, sets.{name}")


def run_suite(
    suite: Suite,
    model: Any,
    tokenizer: Any,
    *,
    oracle_results: Mapping[str, Any] | None = None,
    target_model: Any = None,
    base_dir: Path | None = None,
    accelerator: Any = None,
    console: Any = None,
    keep_text: bool = False,
) -> dict[str, Any]:
    """Measure everything that a suite asks for; each answer is scored once and each prompt answered once.

    Args:
        suite: what to measure.
        model: a causal language model on its device.
        tokenizer: its tokenizer.
        oracle_results: what this function returned for the oracle with the same suite; gives forget quality and
            PrivLeak.
        target_model: the model before unlearning, for the KL to it; None for ``model`` with its adapter off.
        base_dir: the folder that relative paths start from; None for the current one.
        accelerator: an ``accelerate.Accelerator``, for several processes.
        console: a ``rich.console.Console`` to say on what is being done.
        keep_text: put generated answers into the result, which may hold what was to be forgotten.

    Returns:
        A dictionary that JSON can hold (None for "not a number"): ``schema``, ``suite``, ``settings``, ``sets`` with
        aggregates and scores by example id, ``forget_quality``, ``model_utility``, ``attacks``, ``privleak``, ``leak``,
        ``perplexity``, ``kl_to_target``, ``capability``, ``verdict``, ``warnings`` and ``seconds``. No text of the data
        unless ``keep_text``.

    Raises:
        UserError: a package, file or oracle result is missing or does not fit; as far as possible before any work.
    """
    metrics = make_metrics(suite.metrics)
    plan = plan_attacks(suite.attacks, suite.sets, base_dir)
    _check_packages(suite)
    examples = {name: read_set(name, config, base_dir) for name, config in suite.sets.items()}
    text = None if suite.perplexity is None else _read_text(suite.perplexity.path, base_dir)
    if oracle_results is not None:
        _check_oracle(oracle_results)
    loaded = Loaded(model, tokenizer, suite.encoding, suite.generation, suite.batch_tokens, accelerator, target_model)
    results: dict[str, Any] = {"schema": SCHEMA, "suite": suite.name, "settings": _settings(suite)}
    seconds: dict[str, float] = {}
    measured: dict[str, Measured] = {}
    for name, config in suite.sets.items():
        with _timed(seconds, name, console):
            measured[name] = measure_set(name, config, examples[name], metrics, loaded)
    results["sets"] = {
        name: {**set_results(found, seed=suite.seed, keep_text=keep_text), "digest": json_digest(list(found.ids))}
        for name, found in measured.items()
    }
    results["forget_quality"] = None if oracle_results is None else _forget_quality(suite, results, oracle_results)
    results["model_utility"] = _utility(suite, measured)
    warnings = [f"{name}: {warning}" for name, found in measured.items() for warning in found.warnings]
    if not loaded.has_target and (any(one is not None and one.kl for one in (suite.perplexity, *suite.sets.values()))):
        warnings.append("no KL to the target: the model has no adapter to switch off, and no target was given")
    results["attacks"] = results["leak"] = None
    if plan is not None:
        with _timed(seconds, "attacks", console):
            results["attacks"] = measure_attacks(plan, results, measured, examples, loaded, suite.seed)
    results["privleak"], more = measure_privleak(results, oracle_results, suite.seed)
    warnings += more
    sampling = suite.generation.sampling
    if sampling is not None:
        with _timed(seconds, "leak", console):
            results["leak"] = measure_leak(sampling, results, examples, loaded, suite.seed)
    results["perplexity"] = results["kl_to_target"] = results["capability"] = None
    if suite.perplexity is not None and text is not None:
        with _timed(seconds, "perplexity", console):
            windows = _windows(suite.perplexity, text, loaded)
            results["perplexity"] = _perplexity(suite.perplexity, windows, loaded, suite.seed)
            if suite.perplexity.kl and loaded.has_target:
                results["kl_to_target"] = _text_kl(windows, loaded, suite.seed)
    if suite.capability is not None:
        with _timed(seconds, "capability", console):
            found = run_capability(model, tokenizer, accelerator=accelerator, **asdict(suite.capability))
            results["capability"] = {**asdict(found), "n": found.acc.n}
    results["warnings"] = warnings
    results["seconds"] = seconds
    plain: dict[str, Any] = as_json(results)
    plain["verdict"] = verdict(plain, oracle=oracle_results)
    return plain


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON, whole or not at all."""
    write_json(path, as_json(results))


def as_json(value: Any) -> Any:
    """What JSON can hold: dataclasses and arrays taken apart, numbers that are none (NaN, ±∞) as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _timed(seconds: dict[str, float], name: str, console: Any) -> Iterator[None]:
    if console is not None:
        console.print(f"measuring {name} ...")
    start = perf_counter()
    yield
    seconds[name] = round(perf_counter() - start, 2)


def _check_packages(suite: Suite) -> None:
    if any(config.generate for config in suite.sets.values()):
        require("rouge_score", "ROUGE")
    if suite.capability is not None:
        require("lm_eval", "the capability test")
        read_task(suite.capability.task, suite.capability.limit)


def _settings(suite: Suite) -> dict[str, Any]:
    """How it was measured; no paths, which are of one machine."""
    sets = {name: {"stride": config.stride, "limit": config.limit} for name, config in suite.sets.items()}
    return {
        "encoding": asdict(suite.encoding),
        "generation": asdict(suite.generation),
        "sets": sets,
        "batch_tokens": suite.batch_tokens,
        "seed": suite.seed,
        "interval": {"level": 0.95, "resamples": RESAMPLES, "method": "percentile bootstrap over examples"},
    }


def _check_oracle(oracle: Mapping[str, Any]) -> None:
    if oracle.get("schema") != SCHEMA or not isinstance(oracle.get("sets"), Mapping):
        raise UserError(
            f"the oracle's results have schema {oracle.get('schema')!r}, not {SCHEMA}; "
            "give the file that this suite wrote for the oracle"
        )


def _forget_quality(suite: Suite, results: dict[str, Any], oracle: Mapping[str, Any]) -> dict[str, Any] | None:
    """Forget set → definition → the test's result; None where no forget set has truth ratios."""
    found: dict[str, Any] = {}
    for name, own in results["sets"].items():
        labels = [f"truth_ratio_{definition}" for definition in _DEFINITIONS]
        labels = [label for label in labels if label in own["metrics"]]
        if not is_forget(name, suite.sets[name]) or not labels:
            continue
        check_same_set(results, oracle, name)
        other = oracle["sets"][name]
        found[name] = {
            label.removeprefix("truth_ratio_"): asdict(forget_quality(column(own, label), column(other, label)))
            for label in labels
        }
    return found or None


def _utility(suite: Suite, measured: Mapping[str, Measured]) -> dict[str, Any] | None:
    """Definition of the truth ratio → model utility; under ``without_truth_ratio`` where no set has one."""
    chosen = {name: config.utility for name, config in suite.sets.items() if config.utility is not None}
    if not chosen:
        return None
    available = [
        definition
        for definition in _DEFINITIONS
        if any(f"truth_ratio_{definition}" in measured[name].by_metric for name in chosen)
    ]
    found = {}
    for definition in available or ["without_truth_ratio"]:
        components: dict[str, dict[str, Any]] = {}
        for name, probability in chosen.items():
            one = measured[name]
            labels = [probability, "rougeL_recall", f"truth_ratio_{definition}"]
            components[name] = {
                label: np.maximum(0.0, 1.0 - one.by_metric[label])
                if label.startswith("truth")
                else one.by_metric[label]
                for label in labels
                if label in one.by_metric
            }
            if probability not in one.by_metric:
                raise DataError(f"{name} enters the model utility by its {probability}, which its data do not allow")
        found[definition] = asdict(model_utility(components, seed=suite.seed))
    return found


def _read_text(path: str, base_dir: Path | None) -> str:
    file = Path(path) if base_dir is None else base_dir / path
    file = file if file.is_file() else shipped(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; perplexity needs a text file, or set `perplexity: null`")
    return file.read_text(encoding="utf-8")


def _windows(config: PerplexityConfig, text: str, loaded: Loaded) -> list[Encoded]:
    whole = EncodingConfig(max_length=1 << 30, add_end_token=False)
    ids = encode(loaded.tokenizer, Example(example_id("", text), "", text), whole).input_ids
    bare = len(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    begin = ids[: len(ids) - bare]
    return sliding_windows(
        ids[len(begin) :][: config.max_tokens], window=config.window, stride=config.stride, begin=begin
    )


def _perplexity(config: PerplexityConfig, windows: list[Encoded], loaded: Loaded, seed: int) -> dict[str, Any]:
    scores = score_encoded(
        loaded.model,
        windows,
        pad_token_id=loaded.pad_token_id,
        batch_tokens=loaded.batch_tokens,
        accelerator=loaded.accelerator,
    )
    return {**asdict(perplexity(scores, seed=seed)), "window": config.window, "stride": config.stride}


def _text_kl(windows: list[Encoded], loaded: Loaded, seed: int) -> dict[str, Any]:
    offsets = np.cumsum([0, *(len(window.input_ids) - window.prompt_length for window in windows)])
    return {**asdict(text_kl(target_kl(windows, loaded), offsets, seed=seed)), "seed": seed}
