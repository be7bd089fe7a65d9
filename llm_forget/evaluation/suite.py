"""Suites: the sets, metrics and tests of an evaluation, read from YAML and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.readers import locate
from llm_forget.errors import RecipeError
from llm_forget.evaluation.capability.benchmarks import check_benchmarks
from llm_forget.evaluation.capability.local_task import read_task
from llm_forget.evaluation.membership import AttacksConfig, attacks_without, plan_attacks
from llm_forget.evaluation.recipe import BenchmarksConfig, check_counts
from llm_forget.evaluation.running_text import PerplexityConfig, read_text
from llm_forget.evaluation.sets import GenerationConfig, SetConfig, make_metrics, read_set
from llm_forget.evaluation.sources import fill, with_data
from llm_forget.evaluation.whole_sets import make_aggregates
from llm_forget.utils.build import build, load_recipe
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import is_plain_name
from llm_forget.utils.safe_yaml import NotPlainYaml, read_yaml
from llm_forget.utils.shipped import shipped


@dataclass(frozen=True)
class CapabilityConfig:
    """Accuracy on a multiple-choice task, measured by lm-eval."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # A task of the package, or the path of an lm-eval task file.
    task: str = "general_knowledge"
    limit: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the settings."""
        check_counts(self.limit, self.batch_size)


@dataclass(frozen=True)
class Suite:
    """One evaluation."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # Set name (forget, retain, neighbour, holdout, …) → settings. May be empty if benchmarks are given.
    sets: dict[str, SetConfig] = field(default_factory=dict)
    # Names, or {name: rouge, part: f1}; null for every metric that a set's data allow.
    metrics: list[str | dict[str, Any]] | None = None
    # Aggregates of llm_forget/evaluation/aggregates: names, or {name: NAME, setting: value}; null for every one that the
    # data and the controls allow.
    aggregates: list[str | dict[str, Any]] | None = None
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    # null disables perplexity or the capability test.
    perplexity: PerplexityConfig | None = None
    capability: CapabilityConfig | None = None
    # lm-eval tasks; null for none.
    benchmarks: BenchmarksConfig | None = None
    # A folder with the files that the sets name; null for the paths in the sets' `data`, usually on the hub.
    data_dir: str | None = None
    # Values for {variable} in the sets' paths, names and splits, and in the suite's own name.
    variables: dict[str, str] = field(default_factory=dict)
    # Membership inference. By default it runs if there is a set called forget and one called holdout; null disables it.
    attacks: AttacksConfig | None = field(default_factory=AttacksConfig)
    # Seed of the bootstrap intervals and of sampling.
    seed: int = 0
    # Tokens per scoring batch, including padding.
    batch_tokens: int = 2048
    # Name of the result file; by default the name of the suite file.
    name: str = ""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.sets and self.benchmarks is None:
            raise ValueError("sets is empty; name at least one, for example forget")
        if self.attacks is not None:
            self.attacks.sets_among(self.sets)

    @property
    def kl_asked(self) -> list[bool | Literal["auto"]]:
        """The ``kl`` settings of the perplexity text and the sets."""
        return [part.kl for part in (self.perplexity, *self.sets.values()) if part is not None]


@dataclass(frozen=True)
class LoadedSuite(Suite):
    """A suite with its variables filled in and its data sources resolved.

    Attributes:
        left_out: one line for each optional set without data, and for each measurement that needs such a set.
    """

    left_out: tuple[str, ...] = ()


def load_suite(path: str, overrides: Mapping[str, str] | None = None) -> LoadedSuite:
    """Read and check a suite.

    Args:
        path: a YAML file, or the name of a suite of the package, such as ``demo``.
        overrides: dotted key → YAML text, for example ``{"sets.forget.limit": "8"}``.

    Raises:
        RecipeError: the suite does not exist or has mistakes; the message lists all of them.
    """
    file = Path(path).expanduser() if path.endswith((".yaml", ".yml")) else shipped(f"eval/suites/{path}.yaml")
    if not file.is_file() and not shipped(str(file)).is_file():
        known = ", ".join(sorted(one.stem for one in shipped("eval/suites").glob("*.yaml")))
        raise RecipeError(f"the suite {path} does not exist; give a .yaml file, or a suite of the package: {known}")
    _check_sets(file if file.is_file() else shipped(str(file)), path)
    suite = load_recipe(Suite, file, overrides)
    name = fill(suite.name or file.stem, suite.variables, f"{path}, name")
    if not is_plain_name(name):
        raise RecipeError(
            f"{path}, name: {name[:60]!r} names the result file, so it cannot be a path; use letters, digits, '_', '-' and '.'"
        )
    if name == "result" or name.startswith("capability-"):
        raise RecipeError(f"{path}, name: {name!r} is the name of a file that other commands write; give another name")
    sets, left_out = with_data(name, suite.sets, suite.data_dir, suite.variables)
    if not sets and suite.benchmarks is None:
        raise RecipeError(f"data_dir: {suite.data_dir} has none of the files of {name}; {'; '.join(left_out)}")
    attacks, more = attacks_without(suite.attacks, suite.sets.keys() - sets.keys())
    values = {one.name: getattr(suite, one.name) for one in fields(suite)}
    values |= {"sets": sets, "attacks": attacks, "name": name}
    return LoadedSuite(**values, left_out=(*left_out, *more))


def _check_sets(file: Path, path: str) -> None:
    """Check the keys of each set; the general check does not reach into a mapping of sets."""
    try:
        values = read_yaml(file)
    except NotPlainYaml as error:
        raise RecipeError(f"the suite {path} is not valid YAML: {error}") from error
    sets = values.get("sets") if isinstance(values, dict) else None
    for name, entry in sets.items() if isinstance(sets, dict) else []:
        if isinstance(entry, dict):
            build(SetConfig, entry, f"{path}, sets.{name}")


def check_suite(suite: Suite) -> None:
    """Check a suite before a model is loaded: packages, tasks, metrics, and data in local files.

    Raises:
        UserError: something is missing or cannot be used.
    """
    make_metrics(suite.metrics)
    make_aggregates(suite.aggregates)
    plan_attacks(suite.attacks, suite.sets)
    check_packages(suite)
    for name, config in suite.sets.items():
        if locate(config.data.path) is not None:
            read_set(name, config)
    if suite.perplexity is not None:
        read_text(suite.perplexity.path)


def check_packages(suite: Suite) -> None:
    """Check that the optional packages and the tasks that a suite needs are available.

    Raises:
        UserError: one of them is missing.
    """
    if any(config.generate for config in suite.sets.values()):
        require_extra("rouge_score", "ROUGE", "eval")
    if suite.capability is not None:
        require_extra("lm_eval", "the capability test", "eval")
        read_task(suite.capability.task, suite.capability.limit)
    if suite.benchmarks is not None:
        check_benchmarks(suite.benchmarks)
