"""A recipe: YAML and command-line overrides in, checked dataclasses out; every mistake is reported at once, before any work."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource
from llm_forget.errors import RecipeError, UserError
from llm_forget.shipped import shipped

Recipe = TypeVar("Recipe")
_MOST = 65_536  # of ranks, rows in a batch, epochs: more is a slip of the keyboard
_PATHS = {"output_dir", "adapter", "path", "name"}
_LONGEST_NAME = 180  # a file system's 255, less what temporary names add
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
# PyYAML raises the last two for a date that does not exist and for brackets without end.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


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
    # memory. selective: of the others keep the matrix products and compute only the rest again: between the two. Without
    # the check whether the forget and the retain gradient cancel, as compile.
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


def load_recipe(recipe_class: type[Recipe], path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe file, apply dotted overrides, and check the whole.

    A path that does not exist here is looked for among the recipes that come with the package.
    """
    file = Path(path)
    if not file.is_file():
        file = shipped(str(path))
    if not file.is_file():
        raise RecipeError(f"recipe {path} does not exist; `llm-forget recipes` lists those that come with the package")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"recipe {path} holds {type(values).__name__}, not keys and values; see recipes/demo/npo.yaml"
        )
    return build(recipe_class, with_overrides(values, overrides or {}), str(path))


def with_overrides(values: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Set dotted keys to what their texts mean as YAML, in place.

    Raises:
        RecipeError: a text is no YAML, or a key lies below a value.
    """
    for key, text in overrides.items():
        _set(values, key, text)
    return values


def _set(values: dict[str, Any], dotted: str, text: str) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise RecipeError(f"--{dotted}: {part} is a value and has no keys below it")
    try:
        values[last] = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise RecipeError(f"--{dotted} {text}: not a YAML value; quote it") from error


def build(recipe_class: type[Recipe], values: Mapping[str, Any], where: str) -> Recipe:
    """Check values against a dataclass; all errors are collected into one RecipeError."""
    problems = _unknown_keys(recipe_class, values, "") + _unusable_texts(values, "")
    try:
        recipe = TypeAdapter(recipe_class).validate_python(values)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    except UserError as error:
        problems.append(str(error))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise RecipeError(f"{where} cannot be used:\n{listed}")
    return recipe


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"] if isinstance(part, int) or not _is_type_name(str(part)))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{place}: is missing and has no default"
    given = "" if item["type"] == "value_error" else f" (given: {_short(item['input'])})"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def _is_type_name(part: str) -> bool:
    """Pydantic puts the member of a union into the location: `adapter.AdapterConfig.rank`, `stop.forget_target.float`."""
    return part[:1].isupper() or part in {"str", "float", "int", "bool"} or "[" in part


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_keys(cls: Any, values: Any, prefix: str) -> list[str]:
    """Keys that no field has, each with the nearest that one has; walks nested dataclasses, options and lists."""
    if not is_dataclass(cls) or not isinstance(values, Mapping):
        return []
    hints = get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    problems = []
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            problems.append(f"{prefix}{key}: unknown key; {hint}Known here: {', '.join(known)}")
            continue
        for inner in _dataclasses_in(hints[key]):
            nested = value if isinstance(value, list) else [value]
            problems += [found for item in nested for found in _unknown_keys(inner, item, f"{prefix}{key}.")]
    return problems


def _unusable_texts(values: Any, place: str) -> list[str]:
    """Texts that no file system takes: better said here than by it, in the middle of a run."""
    if isinstance(values, Mapping):
        return [found for key, item in values.items() for found in _unusable_texts(item, f"{place}.{key}".strip("."))]
    if isinstance(values, list):
        return [found for item in values for found in _unusable_texts(item, place)]
    if not isinstance(values, str):
        return []
    if "\0" in values:
        return [f"{place}: holds a null character; take it out"]
    is_path = place.rpartition(".")[2] in _PATHS
    longest = max((part for part in values.split("/")), key=len) if is_path else ""
    if len(longest.encode("utf-8", "replace")) > _LONGEST_NAME:
        return [f"{place}: {_short(longest)} is longer than the {_LONGEST_NAME} bytes that a file's name may have here"]
    return []


def _dataclasses_in(hint: Any) -> list[Any]:
    if is_dataclass(hint):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, list):
        return [found for argument in get_args(hint) for found in _dataclasses_in(argument)]
    return []


def to_yaml(recipe: Any) -> str:
    """The recipe with every default written out, as YAML that loads again."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
