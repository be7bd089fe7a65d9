"""What a recipe may say: one dataclass a section, with defaults and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource

_MOST = 65_536  # of ranks, rows in a batch, epochs: more is a slip of the keyboard
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is held in memory."""

    # A folder, a .gguf file, or a hub id.
    name: str
    # A LoRA adapter folder merged into the model before anything else (in fp32), or null.
    adapter: str | None = None
    # Weights of the frozen part: auto (bf16 where the hardware has it), float32, bfloat16. What is trained is always fp32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # auto: eager on a CPU in bf16 (the faster one there), otherwise what transformers chooses.
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    # nf4 or int8 through bitsandbytes (pip install llm-forget[quant]), or null.
    quantization: Literal["nf4", "int8"] | None = None
    # Hub revision.
    revision: str | None = None
    # Run code that comes with the model. Off unless you trust it.
    trust_remote_code: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapter that is trained. `adapter: null` in a recipe trains all weights instead."""

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    # "all-linear", or a list of module names.
    target_modules: str | list[str] = "all-linear"
    # Which share of the blocks has it, counted from the top. Below 1, backward ends at the lowest of them, and of what lies
    # below nothing is kept in memory.
    top_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share is {self.top_share}; it is a share of the blocks, above 0 and at most 1")
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank is {self.rank} and alpha {self.alpha}; both must be 1 or more")
        if self.rank > _MOST:
            raise ValueError(f"rank is {self.rank}; at most {_MOST} is allowed, and no layer is as wide")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a share, 0 or more and below 1")


@dataclass(frozen=True)
class UnlearnData:
    """What to forget and what to keep."""

    forget: DataSource
    # Needed by every retain term, and by the utility floor.
    retain: DataSource | None = None
    # Rows that must stay and are not trained on, to judge the utility floor by; a sample of the retain set without it.
    validation: DataSource | None = None
    # Never trained on: like the forget set in form. Its probability under the target says what "never seen" looks like.
    holdout: DataSource | None = None


@dataclass(frozen=True)
class RetainConfig:
    """The term that protects the rest."""

    # nll, kl, jsd, activation, or the path of your own; null for none. "default": what the method brings.
    name: str | None = "default"
    weight: float = 1.0
    # Hyper-parameters of the term itself, for example {layer: 5} of activation.
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")


@dataclass(frozen=True)
class AlternativeConfig:
    """Other answers to the forget questions, for the methods that teach the model what to say instead."""

    # refusals: one of the list that comes with the package, or of `path`, chosen for each example by the seed. column: the
    # forget rows' own `alternative` column. model: written by the model itself before training. "default": the column
    # where every row has one, else what the method asks for.
    source: Literal["default", "refusals", "column", "model"] = "default"
    # A text file with one refusal a line, instead of ours.
    path: str | None = None
    # Of model-written answers.
    temperature: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.path is not None and self.source not in ("default", "refusals"):
            raise ValueError(f"path is a list of refusals, and source is {self.source}; set one of them only")
        if not 0 < self.temperature < math.inf or self.max_new_tokens < 1:
            raise ValueError(
                f"temperature is {self.temperature} and max_new_tokens {self.max_new_tokens}; above 0 and 1 or more are needed"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Batch sizes are per process; a row is one forget example and one retain example."""

    epochs: int = 10
    batch_size: int = 8
    gradient_accumulation: int = 1
    # null: 1e-3 for an adapter, 1e-5 for full fine-tuning.
    learning_rate: float | None = None
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    # true: keep the activations of one block at a time and compute the others again: a third more time, a fraction of the
    # memory. selective: of the others keep the matrix products and compute only the rest again: between the two.
    gradient_checkpointing: bool | Literal["selective"] = False
    # Rows end to end without padding, and what they begin with alike (the system turn, a question) once (under dropout with
    # one mask), where that saves tokens and the model's attention allows it; padded otherwise, and with compile.
    packing: bool = True
    # torch.compile of every decoder block. The first steps take minutes; worth it for long runs.
    compile: bool = False
    # Unlearning only: optimiser steps between checkpoints, which lie in <output_dir>.checkpoints until the run is complete.
    # 0: only when the process is told to end (SIGTERM).
    save_steps: int = 100
    # So many checkpoints stay.
    keep_checkpoints: int = 2
    # Any of tensorboard, trackio, wandb, mlflow (pip install llm-forget[tensorboard], ...): sent numbers, never text of the
    # data. Their files end up in <output_dir>/logs, unless the tracker's own variable says where (WANDB_DIR, ...).
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"trackers names {', '.join(unknown)}; known are {', '.join(TRACKERS)}")
        if self.save_steps < 0:
            raise ValueError(f"save_steps is {self.save_steps}; it must be 0 (only on SIGTERM) or more")
        for name in ("epochs", "batch_size", "gradient_accumulation", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
            if getattr(self, name) > _MOST:
                raise ValueError(f"{name} is {getattr(self, name)}; at most {_MOST} is allowed")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite")
        if self.compile and self.gradient_checkpointing == "selective":
            raise ValueError(
                "gradient_checkpointing is selective and compile true; a compiled block chooses by itself what it keeps: set "
                "gradient_checkpointing to true or false, or compile to false"
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be greater than 0")

    @property
    def packs(self) -> bool:
        """Whether rows are to be laid end to end; a compiled block is made for batches of one form."""
        return self.packing and not self.compile


@dataclass(frozen=True)
class StopConfig:
    """When to stop: the forget target is reached, the utility floor is broken for good, or a number is not finite."""

    # Mean probability of the forget answers at which they count as forgotten. "holdout": the probability of holdout answers
    # before training, which is what never having seen them looks like (0.1 without a holdout set). null: train to the end.
    forget_target: float | Literal["holdout"] | None = "holdout"
    # Share of the retain answers' probability before training that has to stay.
    utility_floor: float = 0.95
    # So many checks in a row below the floor, none better than the one before, end the run: with a retain term a dip
    # heals. Without one nothing brings the rest back, and the first check below the floor ends the run.
    patience: int = 6
    # Optimiser steps between checks.
    every: int = 3
    # Rows of each set that a check measures.
    rows: int = 32
    # Stop pushing an example once it is as unlikely as the target. auto: for losses that have no lower bound.
    per_example: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.forget_target, float) and not 0 < self.forget_target < 1:
            raise ValueError(
                f"forget_target is {self.forget_target}; give a probability between 0 and 1, 'holdout' or null"
            )
        if not 0 <= self.utility_floor <= 1:
            raise ValueError(f"utility_floor is {self.utility_floor}; it is a share, between 0 and 1")
        for name in ("patience", "every", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class UnlearnRecipe:
    """One unlearning run."""

    model: ModelConfig
    data: UnlearnData
    # {name: npo, beta: 0.1}: the method's file and its hyper-parameters.
    method: dict[str, Any]
    # The run folder. It appears when the run is complete.
    output_dir: str
    retain: RetainConfig = field(default_factory=RetainConfig)
    # γ of γ · forget + α · retain.
    forget_weight: float = 1.0
    alternative: AlternativeConfig = field(default_factory=AlternativeConfig)
    # What changes the gradient of any loss, in this order: [{name: sam, rho: 0.01}, {name: gru}]; `llm-forget methods` has all.
    wrappers: list[dict[str, Any]] = field(default_factory=list)
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    seed: int = 0
    # Replace a run folder that is already there, and throw away an interrupted run's checkpoints.
    overwrite: bool = False
    # Go on from the newest checkpoint of an interrupted run of this recipe; from the beginning where there is none.
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.forget_weight < math.inf:
            raise ValueError(f"forget_weight is {self.forget_weight}; it must be 0 or more")
        _check_seed(self.seed)


@dataclass(frozen=True)
class FinetuneRecipe:
    """Plain supervised fine-tuning: makes a target (all data) or an oracle (everything but the forget set)."""

    model: ModelConfig
    # One or several files, read one after the other.
    data: list[DataSource]
    output_dir: str
    adapter: AdapterConfig | None = field(default_factory=lambda: AdapterConfig(rank=32, alpha=64))
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8, batch_size=16))
    # Write the model with the adapter merged in, as a folder that loads like any other, to <output_dir>/model.
    merge: bool = True
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be 0 or more and below 2**32")
