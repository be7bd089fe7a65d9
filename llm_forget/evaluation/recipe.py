"""What an evaluation is made from: a model, a suite, and where the numbers go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from llm_forget.config import ModelConfig


@dataclass(frozen=True)
class ControlsConfig:
    """Where the controls' results are: each a file that this suite wrote for it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # The model before unlearning.
    target: str | None = None
    # A model that never saw the forget set.
    oracle: str | None = None
    # The same recipe run on a disjoint forget set: what it does to a model whatever it is told to forget.
    sham: str | None = None


@dataclass(frozen=True)
class BenchmarksConfig:
    """General ability by tasks of lm-eval."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # quick: the embedded task, and 100 questions of each local one if data_dir is given (minutes on a CPU). full: all their
    # questions; without data_dir lm-eval's own ARC-Easy, MMLU, TruthfulQA and OpenBookQA from the hub.
    preset: Literal["quick", "full"] | None = None
    # More tasks: any of lm-eval by its name (from the hub), a local one such as mmlu_local, or the path of a task file.
    tasks: list[str] = field(default_factory=list)
    # The folder that holds the files of local tasks.
    data_dir: str | None = None
    # Questions of each task, evenly spread over its file (lm-eval's own: the first ones); null for all.
    limit: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.preset is None and not self.tasks:
            raise ValueError("benchmarks names nothing to run; set preset (quick, full) or tasks")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; give 1 or more, or null for all")


@dataclass(frozen=True)
class EvalRecipe:
    """One evaluation of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    # A suite file, or the name of one that comes with the package: demo, tofu, ...
    suite: str
    # The run folder; results go to <output_dir>/eval/<suite>.json.
    output_dir: str
    # Results of the same suite on the controls, shown next to this model's. The oracle's give forget quality and PrivLeak.
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    # The model before unlearning, for a suite that asks for the KL to it; null for the model's own base without its adapter.
    target: ModelConfig | None = None
    # A folder with the suite's data, for suites whose data are on the hub.
    data_dir: str | None = None
    # Values of the suite's variables, for example {split: forget05}.
    variables: dict[str, str] = field(default_factory=dict)
    # Changes to the suite by dotted key, for example {sets.forget.limit: 8, capability: null}.
    overrides: dict[str, Any] = field(default_factory=dict)
    # Put generated answers into the results and the cache. They may hold what was to be forgotten.
    keep_text: bool = False
    # Where scores are kept as they are computed, so that an interrupted evaluation goes on and a finished one is not done
    # twice: "auto" for $LLM_FORGET_CACHE/evaluation, else <output_dir>/eval/cache; a folder; or null for nowhere.
    cache: str | None = "auto"


@dataclass(frozen=True)
class CapabilityRecipe:
    """The capability test alone, of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    # The run folder; results go to <output_dir>/eval/capability-<task>.json.
    output_dir: str
    # A task that comes with the package, or the path of an lm-eval task file with its questions beside it.
    task: str = "general_knowledge"
    # Only the first so many questions; null for all.
    limit: int | None = None
    # Choices a forward.
    batch_size: int = 16
    # Other tasks instead of `task`: {preset: quick}, or {tasks: [hellaswag]}.
    benchmarks: BenchmarksConfig | None = None
