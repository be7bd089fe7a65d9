"""Recipe of an evaluation: the model, the suite, and the output folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from llm_forget.config import ModelConfig


def check_counts(limit: int | None, batch_size: int) -> None:
    """Check the numbers of an lm-eval task.

    Raises:
        ValueError: one of them is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give 1 or more, or null for all")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more")


@dataclass(frozen=True)
class ControlsConfig:
    """This suite's result files for the controls."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # The model before unlearning.
    target: str | None = None
    # A model that never saw the forget set.
    oracle: str | None = None
    # The same recipe run on a disjoint forget set. It shows the changes that do not depend on which data are forgotten.
    sham: str | None = None


@dataclass(frozen=True)
class BenchmarksConfig:
    """General capability, measured by lm-eval tasks."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # quick: the embedded task, and 100 questions of each local task if data_dir is given (minutes on a CPU). full: all
    # questions of these tasks; without data_dir, lm-eval's own ARC-Easy, MMLU, TruthfulQA and OpenBookQA from the hub.
    preset: Literal["quick", "full"] | None = None
    # Further tasks: the name of an lm-eval task (from the hub), a local task such as mmlu_local, or the path of a task file.
    tasks: list[str] = field(default_factory=list)
    # The folder with the files of local tasks.
    data_dir: str | None = None
    # Number of questions per task, evenly spread over its file (for lm-eval's own tasks: the first ones); null for all.
    limit: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.preset is None and not self.tasks:
            raise ValueError("benchmarks has neither preset nor tasks; set preset (quick, full) or tasks")
        check_counts(self.limit, self.batch_size)


@dataclass(frozen=True)
class EngineConfig:
    """What computes scores and answers."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # transformers: the model is loaded in this process. vllm: a running vLLM is asked; the recipe's model only gives the
    # tokenizer. Its questions and answers, those of the forget set too, go to that server.
    name: Literal["transformers", "vllm"] = "transformers"
    # The server, for example http://localhost:8000.
    url: str | None = None
    # The model's name on the server, or its adapter's.
    served_model: str | None = None
    # The environment variable with the server's key; it need not be set for a server without keys.
    key_variable: str = "OPENAI_API_KEY"
    # Requests at once. The server makes its own batches of them.
    at_once: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        given = self.url is not None, self.served_model is not None
        if self.name == "vllm" and not all(given):
            raise ValueError("name is vllm; give url (http://HOST:PORT) and served_model, the name on that server")
        if self.name == "transformers" and any(given):
            raise ValueError("url and served_model are for a server; set name to vllm, or leave them out")
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; give 1 or more")


@dataclass(frozen=True)
class EvalRecipe:
    """One evaluation of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    # A suite file, or the name of a suite of the package: demo, tofu, ...
    suite: str
    # The run folder; results go to <output_dir>/eval/<suite>.json.
    output_dir: str
    # Results of the same suite on the controls, shown next to this model's. Forget quality and PrivLeak need the oracle's.
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    # The model before unlearning, for a suite that measures the KL to it; null for the model without its adapter.
    target: ModelConfig | None = None
    # A folder with the suite's data files; null for the paths in the suite, usually on the hub.
    data_dir: str | None = None
    # Values of the suite's variables, for example {split: forget05}.
    variables: dict[str, str] = field(default_factory=dict)
    # Changes to the suite by dotted key, for example {sets.forget.limit: 8, capability: null}.
    overrides: dict[str, Any] = field(default_factory=dict)
    # What computes scores and answers: this process, or a vLLM server.
    engine: EngineConfig = field(default_factory=EngineConfig)
    # Store generated answers in the results and the cache. They may contain the forgotten data.
    keep_text: bool = False
    # Cache folder for scores, so that an interrupted evaluation can resume and a finished one is not repeated. "auto":
    # $LLM_FORGET_CACHE/evaluation if this variable is set, else <output_dir>/eval/cache. null: no cache.
    cache: str | None = "auto"


@dataclass(frozen=True)
class CapabilityRecipe:
    """Only the capability test of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    # The run folder; results go to <output_dir>/eval/capability-<task>.json.
    output_dir: str
    # A task of the package, or the path of an lm-eval task file with its questions (.jsonl) in the same folder.
    task: str = "general_knowledge"
    # Only the first questions, up to this number; null for all.
    limit: int | None = None
    # Answer choices per forward pass.
    batch_size: int = 16
    # Benchmarks instead of `task`: {preset: quick}, or {tasks: [hellaswag]}.
    benchmarks: BenchmarksConfig | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_counts(self.limit, self.batch_size)
