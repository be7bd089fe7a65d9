"""What an evaluation is made from: a model, a suite, and where the numbers go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict

from llm_forget.config import ModelConfig


@dataclass(frozen=True)
class EvalRecipe:
    """One evaluation of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    # A suite file, or the name of one that comes with the package: demo, tofu_mini, ...
    suite: str
    # The run folder; results go to <output_dir>/eval/<suite>.json.
    output_dir: str
    # Results of the same suite on the oracle, for forget quality and PrivLeak.
    oracle: str | None = None
    # The model before unlearning, for a suite that asks for the KL to it; null for the model's own base without its adapter.
    target: ModelConfig | None = None
    # Changes to the suite by dotted key, for example {sets.forget.limit: 8, capability: null}.
    overrides: dict[str, Any] = field(default_factory=dict)
    # Put generated answers into the results. They may hold what was to be forgotten.
    keep_text: bool = False


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
