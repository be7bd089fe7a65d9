"""A suite: which sets, metrics and tests make up an evaluation, read from YAML and run on a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import ConfigDict

from llm_forget.data.encode import Encoded, EncodingConfig, encode
from llm_forget.data.examples import Example, example_id
from llm_forget.data.readers import locate
from llm_forget.errors import DataError, RecipeError
from llm_forget.evaluation.aggregate import RESAMPLES
from llm_forget.evaluation.aggregates.forget_quality import forget_quality
from llm_forget.evaluation.aggregates.model_utility import model_utility
from llm_forget.evaluation.aggregates.perplexity import perplexity, sliding_windows
from llm_forget.evaluation.capability.benchmarks import check_benchmarks, run_benchmarks
from llm_forget.evaluation.capability.local_task import read_task, run_capability
from llm_forget.evaluation.compare import check_same_set, column
from llm_forget.evaluation.controls import check_controls, side_by_side
from llm_forget.evaluation.leak import measure_leak
from llm_forget.evaluation.membership import (
    AttacksConfig,
    attacks_without,
    check_attacks,
    measure_attacks,
    measure_privleak,
    plan_attacks,
)
from llm_forget.evaluation.metrics.kl_to_target import text_kl
from llm_forget.evaluation.passes.cache import Cache, context_digest, model_context
from llm_forget.evaluation.passes.meter import Meter
from llm_forget.evaluation.recipe import BenchmarksConfig
from llm_forget.evaluation.results import as_json
from llm_forget.evaluation.schema import SCHEMA, check_results
from llm_forget.evaluation.sets import (
    GenerationConfig,
    Loaded,
    Measured,
    SetConfig,
    is_forget,
    make_metrics,
    measure_set,
    read_set,
    score_all,
    set_digest,
    set_results,
    target_kl,
)
from llm_forget.evaluation.sources import fill, with_data
from llm_forget.evaluation.verdict import verdict
from llm_forget.utils.build import build, load_recipe
from llm_forget.utils.extras import require_extra
from llm_forget.utils.shipped import shipped

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
    # Also compare with the model before unlearning, token by token: a forward of each. auto: where there is that model.
    kl: bool | Literal["auto"] = False


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

    # forget, retain, neighbour, holdout, …: what is measured, by name. May be left out where there are benchmarks.
    sets: dict[str, SetConfig] = field(default_factory=dict)
    # Names, or {name: rouge, part: f1}; null for every metric that a set's data allow.
    metrics: list[str | dict[str, Any]] | None = None
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    # null switches either off.
    perplexity: PerplexityConfig | None = None
    capability: CapabilityConfig | None = None
    # Tasks of lm-eval; null for none.
    benchmarks: BenchmarksConfig | None = None
    # A folder with the files that the sets name; null: from where `data` says, the hub.
    data_dir: str | None = None
    # What stands for {word} in the sets' paths, names and splits, and in the suite's own name.
    variables: dict[str, str] = field(default_factory=dict)
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
        if not self.sets and self.benchmarks is None:
            raise ValueError("sets is empty; name at least one, for example forget")
        if self.attacks is not None:
            self.attacks.sets_among(self.sets)

    @property
    def kl_asked(self) -> list[bool | Literal["auto"]]:
        """What sets and text ask for of KL to the target."""
        return [part.kl for part in (self.perplexity, *self.sets.values()) if part is not None]


@dataclass(frozen=True)
class LoadedSuite(Suite):
    """A suite whose variables are filled in and whose data are looked up.

    Attributes:
        left_out: a line for each optional set whose data are missing, and for what cannot be measured without it.
    """

    left_out: tuple[str, ...] = ()


def load_suite(path: str, overrides: Mapping[str, str] | None = None) -> LoadedSuite:
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
    name = fill(suite.name or file.stem, suite.variables, f"{path}, name")
    sets, left_out = with_data(name, suite.sets, suite.data_dir, suite.variables)
    if not sets and suite.benchmarks is None:
        raise RecipeError(f"data_dir: {suite.data_dir} holds none of the files of {name}; {'; '.join(left_out)}")
    attacks, more = attacks_without(suite.attacks, suite.sets.keys() - sets.keys())
    values = {one.name: getattr(suite, one.name) for one in fields(suite)}
    values |= {"sets": sets, "attacks": attacks, "name": name}
    return LoadedSuite(**values, left_out=(*left_out, *more))


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
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    target_model: Any = None,
    accelerator: Any = None,
    console: Any = None,
    keep_text: bool = False,
    cache: Path | None = None,
    in_memory: Mapping[str, Sequence[Example]] | None = None,
) -> dict[str, Any]:
    """Measure everything that a suite asks for; each answer is scored once and each prompt answered once.

    Args:
        suite: what to measure.
        model: a causal language model on its device.
        tokenizer: its tokenizer.
        controls: role (target, oracle, sham) → what this function returned for that model with the same suite. Their
            aggregates are part of the result. The oracle's give forget quality and PrivLeak.
        target_model: the model before unlearning, for the KL to it; None for ``model`` with its adapter off.
        accelerator: an ``accelerate.Accelerator``, for several processes.
        console: a ``rich.console.Console`` to say on what is being done.
        keep_text: put generated answers into the result and the cache; they may hold what was to be forgotten.
        cache: a folder that keeps what is computed, and from which it is taken for the same model, data and settings.
        in_memory: sets that need no reading, by name; their ``data`` say what messages call them.

    Returns:
        A dictionary that JSON can hold (None for "not a number"): ``schema``, ``suite``, ``settings``, ``sets`` with
        aggregates and scores by example id, ``forget_quality``, ``model_utility``, ``attacks``, ``privleak``, ``leak``,
        ``perplexity``, ``kl_to_target``, ``capability``, ``benchmarks``, ``controls``, ``verdict``, ``warnings`` and
        ``seconds``; see ``evaluation/schema.py``. No text of the data unless ``keep_text``.

    Raises:
        UserError: a package, file or oracle result is missing or does not fit; as far as possible before any work.
    """
    metrics = make_metrics(suite.metrics)
    controls = dict(controls or {})
    for role, control in controls.items():
        check_results(control, f"what was given for the {role}")
    oracle = controls.get("oracle")
    plan = plan_attacks(suite.attacks, suite.sets)
    check_attacks(plan, model)
    _check_packages(suite)
    examples = {name: read_set(name, one, (in_memory or {}).get(name)) for name, one in suite.sets.items()}
    text = None if suite.perplexity is None else _read_text(suite.perplexity.path)
    meter = Meter(console, 1 if accelerator is None else accelerator.num_processes)
    loaded = Loaded(model, tokenizer, suite.encoding, suite.generation, suite.batch_tokens, accelerator)
    loaded = replace(
        loaded, cache=_open_cache(cache, model, tokenizer), meter=meter, keep_text=keep_text, target=target_model
    )
    if loaded.cache is not None and target_model is not None:
        loaded = replace(loaded, target_digest=context_digest(target_model, tokenizer))
    results: dict[str, Any] = {"schema": SCHEMA, "suite": suite.name, "settings": _settings(suite)}
    digests = {name: set_digest(suite.sets[name], found) for name, found in examples.items()}
    asked = {name: {"digest": digests[name], "forget": is_forget(name, suite.sets[name])} for name in digests}
    left_out = suite.left_out if isinstance(suite, LoadedSuite) else ()
    warnings = [*left_out, *check_controls({**results, "sets": asked}, controls)]
    measured: dict[str, Measured] = {}
    for name, config in suite.sets.items():
        with meter.part(name):
            measured[name] = measure_set(name, config, examples[name], metrics, loaded)
    results["sets"] = {
        name: {**set_results(found, seed=suite.seed, keep_text=keep_text), "digest": digests[name]}
        for name, found in measured.items()
    }
    results["controls"] = side_by_side(controls)
    results["forget_quality"] = None if oracle is None else _forget_quality(suite, results, oracle)
    results["model_utility"] = _utility(suite, measured)
    warnings += [f"{name}: {warning}" for name, found in measured.items() for warning in found.warnings]
    if not loaded.has_target and True in suite.kl_asked:
        warnings.append("no KL to the target: the model has no adapter to switch off, and no target was given")
    results["attacks"] = results["leak"] = None
    if plan is not None:
        with meter.part("attacks"):
            results["attacks"] = measure_attacks(plan, results, measured, examples, loaded, suite.seed)
    results["privleak"], more = measure_privleak(results, oracle, suite.seed)
    warnings += more
    sampling = suite.generation.sampling
    if sampling is not None:
        with meter.part("leak"):
            asking = [name for name, config in suite.sets.items() if is_forget(name, config) and config.generate]
            results["leak"] = measure_leak(sampling, asking, results, examples, loaded, suite.seed) or None
    results["perplexity"] = results["kl_to_target"] = results["capability"] = None
    if suite.perplexity is not None and text is not None:
        with meter.part("perplexity"):
            windows = _windows(suite.perplexity, text, loaded)
            results["perplexity"] = _perplexity(suite.perplexity, windows, loaded, suite.seed)
            if suite.perplexity.kl and loaded.has_target:
                results["kl_to_target"] = _text_kl(windows, loaded, suite.seed)
    if suite.capability is not None:
        with meter.part("capability"):
            found = run_capability(
                model, tokenizer, accelerator=accelerator, cache=loaded.cache, **asdict(suite.capability)
            )
            results["capability"] = {**asdict(found), "n": found.acc.n}
    results["benchmarks"] = {}
    if suite.benchmarks is not None:
        with meter.part("benchmarks"):
            results["benchmarks"] = run_benchmarks(
                suite.benchmarks, model, tokenizer, accelerator=accelerator, cache=loaded.cache, seed=suite.seed
            )
    results["warnings"] = warnings
    results["seconds"] = meter.seconds
    plain: dict[str, Any] = as_json(results)
    plain["verdict"] = verdict(plain, **controls)
    return plain


def check_suite(suite: Suite) -> None:
    """Find what is wrong before a model is loaded: packages, tasks, metrics, and the data that are files.

    Raises:
        UserError: something is missing or cannot be used.
    """
    make_metrics(suite.metrics)
    plan_attacks(suite.attacks, suite.sets)
    _check_packages(suite)
    for name, config in suite.sets.items():
        if locate(config.data.path) is not None:
            read_set(name, config)
    if suite.perplexity is not None:
        _read_text(suite.perplexity.path)


def _check_packages(suite: Suite) -> None:
    if any(config.generate for config in suite.sets.values()):
        require_extra("rouge_score", "ROUGE", "eval")
    if suite.capability is not None:
        require_extra("lm_eval", "the capability test", "eval")
        read_task(suite.capability.task, suite.capability.limit)
    if suite.benchmarks is not None:
        check_benchmarks(suite.benchmarks)


def _open_cache(folder: Path | None, model: Any, tokenizer: Any) -> Cache | None:
    context = None if folder is None else model_context(model, tokenizer)
    return None if folder is None or context is None else Cache(folder, context)


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
        found[definition] = {**asdict(model_utility(components, seed=suite.seed)), "seed": suite.seed}
    return found


def _read_text(path: str) -> str:
    file = Path(path)
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
    entry = perplexity(score_all(windows, loaded), seed=seed)
    return {**asdict(entry), "seed": seed, "window": config.window, "stride": config.stride}


def _text_kl(windows: list[Encoded], loaded: Loaded, seed: int) -> dict[str, Any]:
    offsets = np.cumsum([0, *(len(window.input_ids) - window.prompt_length for window in windows)])
    return {**asdict(text_kl(target_kl(windows, loaded), offsets, seed=seed)), "seed": seed}
