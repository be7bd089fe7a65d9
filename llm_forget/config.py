"""The fields of a recipe: one dataclass per section, with defaults and checks.

The comment above a field is its text in ``--help``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource

_MOST = 65_536  # largest rank, batch size and number of epochs; larger values are typing mistakes
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


@dataclass(frozen=True)
class ModelConfig:
    """The model and its precision."""

    # A model folder, a .gguf file or a hub id.
    name: str
    # Folder of a LoRA adapter that is merged into the model (in fp32) before the run. null for none.
    adapter: str | None = None
    # Precision of the frozen weights. auto: bf16 if the hardware supports it. Trained weights are always fp32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # Attention implementation. auto: eager on a CPU in bf16, where it is faster; otherwise the default of transformers.
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    # Quantise the frozen weights with bitsandbytes (pip install llm-forget[quant]). null for no quantisation.
    quantization: Literal["nf4", "int8"] | None = None
    # Branch, tag or commit of the model on the hub.
    revision: str | None = None
    # Run Python code that is shipped with the model. Enable it only for models that you trust.
    trust_remote_code: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapter that is trained. `adapter: null` trains all weights instead."""

    # Rank of the update, r in PEFT.
    rank: int = 16
    # The update is scaled by alpha / rank.
    alpha: int = 16
    # Dropout on the adapter's input.
    dropout: float = 0.0
    # "all-linear", a list of module names, or a regular expression for full module names.
    target_modules: str | list[str] = "all-linear"
    # all: train A and B. forget: A responds to inputs that the forget rows have and the rows to keep lack, and only B is trained.
    # Other rows, neighbours included, are then hardly touched. Layers with more than 4,096 inputs are left out.
    inputs: Literal["all", "forget"] = "all"
    # Fraction of the blocks that get an adapter, counted from the top. Below 1.0, the lower blocks need no backward pass and
    # store no activations; their output is computed once for each row and kept in memory, up to a quarter of the weights' size.
    top_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share is {self.top_share}; give a fraction of the blocks, above 0 and at most 1")
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank is {self.rank} and alpha {self.alpha}; both must be 1 or more")
        if self.alpha > _MOST:
            raise ValueError(f"alpha is too large; at most {_MOST} is allowed, and one or two times the rank is usual")
        if self.rank > _MOST:
            raise ValueError(f"rank is {self.rank}; at most {_MOST} is allowed, and no layer is as wide")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; give a fraction, 0 or more and below 1")


@dataclass(frozen=True)
class UnlearnData:
    """The rows to forget and the rows to keep."""

    # Rows to forget.
    forget: DataSource
    # Rows to keep. Required by retain terms and by the utility floor.
    retain: DataSource | None = None
    # Rows to keep that are not trained on. The utility floor is measured on them. null: a sample of the retain rows.
    validation: DataSource | None = None
    # Rows like the forget rows that the model was never trained on. Their probability shows how unlikely an unseen answer is.
    holdout: DataSource | None = None

    def __post_init__(self) -> None:
        for name in ("forget", "retain"):
            source = getattr(self, name)
            if source is not None and source.optional:
                raise ValueError(f"{name} is optional; only validation and holdout may be left out of a run")


@dataclass(frozen=True)
class RetainConfig:
    """The loss term that protects other knowledge."""

    # nll, kl, jsd, activation, virtual_neighbours, mined_neighbours, or the path of your own file. "default": the method's own
    # term. null for none.
    name: str | None = "default"
    # α in γ · forget + α · retain.
    weight: float = 1.0
    # Hyper-parameters of the retain term, for example {layer: 5} for activation.
    settings: dict[str, Any] = field(default_factory=dict)
    # Train on only so many retain rows, those worded most like the forget rows. They recur, and with adapter.top_share a row that
    # recurs costs less. null for all rows.
    most: int | None = None
    # Further terms with their weights and hyper-parameters, for example [{name: virtual_neighbours, weight: 1.0}].
    more: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most is {self.most}; give 1 or more rows, or null for all")


@dataclass(frozen=True)
class AlternativeConfig:
    """Alternative answers to the forget questions, for methods that teach the model what to say instead."""

    # refusals: a refusal for each row, drawn from the list in the package or in `path`. column: the `alternative` column of the
    # forget rows. model: answers that the model writes before training. "default": the column if every row has a value, otherwise
    # the method's own choice.
    source: Literal["default", "refusals", "column", "model"] = "default"
    # Text file with one refusal per line. null uses the list in the package.
    path: str | None = None
    # Sampling temperature of answers that the model writes.
    temperature: float = 1.0
    # Longest answer that the model writes, in tokens.
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.path is not None and self.source not in ("default", "refusals"):
            raise ValueError(f"path names a list of refusals, but source is {self.source}; set one of the two")
        if not 0 < self.temperature < math.inf or self.max_new_tokens < 1:
            raise ValueError(
                f"temperature is {self.temperature} and max_new_tokens {self.max_new_tokens}; give above 0, and 1 or more"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. Batch sizes are per process; a row is one forget example and one retain example."""

    # Passes over the forget rows (unlearning) or over all rows (fine-tuning).
    epochs: int = 10
    # Rows of a micro-batch.
    batch_size: int = 8
    # Micro-batches per optimiser step.
    gradient_accumulation: int = 1
    # null: 1e-3 for an adapter, 1e-5 for full fine-tuning.
    learning_rate: float | None = None
    # Learning rate schedule of transformers, for example linear, cosine or constant.
    schedule: str = "linear"
    # Optimiser steps of linear warm-up.
    warmup_steps: int = 0
    # Weight decay of the optimiser.
    weight_decay: float = 0.0
    # Gradients are clipped to this norm.
    max_grad_norm: float = 1.0
    # Optimiser of transformers, for example adamw_torch_fused or paged_adamw_8bit. natural: measure once what each change costs
    # the rows to keep and those of retain.more, also with weight 0, and take the steps that cost them least. It needs
    # adapter.inputs: forget. Its learning rate is relative: the share of the loss that the first step should remove.
    optimizer: str = "adamw_torch_fused"
    # Recompute activations in the backward pass instead of storing them. true: about a third more time for a fraction of the
    # memory. selective: store the matrix products and recompute the rest; time and memory are in between.
    gradient_checkpointing: bool | Literal["selective"] = False
    # Pack rows without padding and compute shared prefixes (system prompt, question) once. Under dropout, a shared prefix has
    # one mask. Batches are padded if packing saves no tokens, if the model's attention does not support it, and with compile.
    packing: bool = True
    # Compile every decoder block with torch.compile. The first steps take minutes, so it pays off in long runs only.
    compile: bool = False
    # Unlearning only. Optimiser steps between checkpoints, which are in <output_dir>.checkpoints until the run is complete.
    # 0: write a checkpoint only on SIGTERM, SIGINT or SIGHUP.
    save_steps: int = 100
    # Number of checkpoints that are kept.
    keep_checkpoints: int = 2
    # Any of tensorboard, trackio, wandb, mlflow (pip install llm-forget[tensorboard], ...). They get numbers and never text of
    # the data. Their files go to <output_dir>/logs, unless the tracker's own variable (WANDB_DIR, ...) names another place.
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"trackers names {', '.join(unknown)}; known are {', '.join(TRACKERS)}")
        if self.save_steps < 0:
            raise ValueError(f"save_steps is {self.save_steps}; it must be 0 (only on a signal to end) or more")
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
                "gradient_checkpointing is selective and compile true; a compiled block decides itself which activations it "
                "stores: set gradient_checkpointing to true or false, or compile to false"
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be greater than 0")

    @property
    def packs(self) -> bool:
        """Whether to pack rows. Compiled blocks need padded batches."""
        return self.packing and not self.compile


@dataclass(frozen=True)
class StopConfig:
    """Early stopping: the forget target is reached, the retain probability stays below the floor, or a gradient is not finite."""

    # Stop when the mean probability of the forget answers is this low. "holdout": as low as that of the holdout answers before
    # training, which is how unlikely an unseen answer is (0.1 without a holdout set). "rows": when each row is about as likely
    # as for a model that never saw it, computed from base or from the holdout set. null: train to the end.
    forget_target: float | Literal["holdout", "rows"] | None = "holdout"
    # With row targets, how near the rows must come, as a multiple of the usual distance: nine of ten rows within 1.5 nats per
    # token of their own target, and on average at most 0.2 above and 0.25 below. A lower value takes more steps.
    tolerance: float = 1.0
    # Fraction of the retain probability before training that must be kept.
    utility_floor: float = 0.95
    # Fraction of the probability of neighbours before training that must be kept. The neighbours are those of the retain term
    # virtual_neighbours or mined_neighbours, which must be in retain. null for no such floor.
    neighbour_floor: float | None = None
    # Stop after this many checks in a row below the floor, none better than the one before. A run without a retain term cannot
    # recover, so its first check below the floor stops it.
    patience: int = 6
    # Optimiser steps between checks.
    every: int = 3
    # Largest number of rows of each set that a check measures.
    rows: int = 32
    # Do not train on forget examples that are already as unlikely as the forget target. auto: only for losses without a lower
    # bound.
    per_example: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.forget_target, float) and not 0 < self.forget_target < 1:
            raise ValueError(
                f"forget_target is {self.forget_target}; give a probability between 0 and 1, 'holdout', 'rows' or null"
            )
        if not 0 <= self.utility_floor <= 1:
            raise ValueError(f"utility_floor is {self.utility_floor}; give a fraction between 0 and 1")
        if self.neighbour_floor is not None and not 0 <= self.neighbour_floor <= 1:
            raise ValueError(f"neighbour_floor is {self.neighbour_floor}; give a fraction between 0 and 1, or null")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance is {self.tolerance}; give a number above 0")
        for name in ("patience", "every", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class UnlearnRecipe:
    """One unlearning run."""

    model: ModelConfig
    data: UnlearnData
    # The run folder. It is created when the run is complete.
    output_dir: str
    # Name of the method, or the path of your own file, and its hyper-parameters: {name: npo, beta: 0.1}. Without a method, the
    # run takes base_teacher (npo without base), row targets, virtual neighbours, and steps for its rows; settings that the recipe
    # changes are kept.
    method: dict[str, Any] = field(default_factory=dict)
    # search.json of `llm-forget find`: the record of the search that found the forget rows. The run keeps a copy for its report.
    search: str | None = None
    # The model before it learned the forget rows: a folder, a .gguf file or a hub id. "auto": the model without model.adapter,
    # if there is an adapter. null for none.
    base: str | None = "auto"
    # Folder with the files that the data sources name as `file`. null reads the data from `path`, for example the hub.
    data_dir: str | None = None
    retain: RetainConfig = field(default_factory=RetainConfig)
    # γ in γ · forget + α · retain, where α is retain.weight.
    forget_weight: float = 1.0
    alternative: AlternativeConfig = field(default_factory=AlternativeConfig)
    # Gradient wrappers, applied in this order: [{name: sam, rho: 0.01}, {name: gru}]. `llm-forget methods` lists them.
    wrappers: list[dict[str, Any]] = field(default_factory=list)
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    # Seed of the adapter's initial weights, the order of the rows, dropout and sampling.
    seed: int = 0
    # Replace an existing run folder, and delete the checkpoints of an interrupted run.
    overwrite: bool = False
    # Continue from the newest checkpoint of an interrupted run of this recipe. Without a checkpoint, start from the beginning.
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.forget_weight < math.inf:
            raise ValueError(f"forget_weight is {self.forget_weight}; it must be 0 or more")
        _check_seed(self.seed)


@dataclass(frozen=True)
class FinetuneRecipe:
    """Supervised fine-tuning. Produces a target (all data) or an oracle (all data except the forget set)."""

    model: ModelConfig
    # One or several data sources, which are concatenated.
    data: list[DataSource]
    # The run folder. It is created when the run is complete.
    output_dir: str
    # Folder with the files that the data sources name as `file`. null reads the data from `path`, for example the hub.
    data_dir: str | None = None
    adapter: AdapterConfig | None = field(default_factory=lambda: AdapterConfig(rank=32, alpha=64))
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8, batch_size=16))
    # Merge the adapter and write the model to <output_dir>/model.
    merge: bool = True
    # Seed of the adapter's initial weights, the order of the rows and dropout.
    seed: int = 0
    # Replace an existing run folder.
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be 0 or more and below 2**32")
