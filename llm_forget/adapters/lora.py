"""A LoRA adapter as tensors: read and write PEFT folders without the base model.

Reading is strict on purpose. Negating, adding, exporting and merging are only correct for ΔW = scaling·B·A, so any adapter that
is more than that is refused here, with the reason and a remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_forget.adapters.lora_config import (
    LORA_TENSOR,
    Problem,
    config_problems,
    ranks_and_scalings,
    tensor_problems,
    untargeted,
)
from llm_forget.errors import AdapterError
from llm_forget.utils import files
from llm_forget.utils.digests import stored_metadata
from llm_forget.utils.output import writing
from llm_forget.utils.safe_yaml import NotPlainYaml, load_yaml

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CARD_NAME = "README.md"
DIGEST_KEY = "base_model_digest"  # in the safetensors metadata and the card's front matter, which servers ignore

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BaseRecord:
    """The model an adapter is for.

    Attributes:
        name: its hub id, or the folder it was loaded from.
        revision: the hub revision, if one was given.
        digest: ``weights_digest`` of its weights; unlike the others it identifies the weights.
    """

    name: str | None = None
    revision: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Factors:
    """The change of one linear layer: ΔW (out, in) = scaling · B · A.

    Attributes:
        A: (r, in).
        B: (out, r).
        scaling: alpha/r, or alpha/√r with rsLoRA.
    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the shape of ΔW."""
        return self.B.shape[0], self.A.shape[1]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on linear layers.

    Attributes:
        config: its adapter_config.json.
        modules: the factors of each layer, by the layer's name in the base model.
        base: the model it is for.
    """

    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    base: BaseRecord = BaseRecord()

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(factors.rank for factors in self.modules.values())


def load_adapter(folder: str | Path) -> Adapter:
    """Read a PEFT LoRA folder.

    Raises:
        AdapterError: the folder is damaged, or not plain LoRA on linear layers.
    """
    folder = Path(folder)
    config = read_config(folder)
    _refuse(folder, config_problems(config))
    tensors = _read_tensors(folder)
    _refuse(folder, tensor_problems(tensors))
    pairs = _pairs(folder, tensors)
    scalings = ranks_and_scalings(config, pairs)
    modules = {name: _factors(folder, name, pair, *scalings[name]) for name, pair in pairs.items()}
    stray = untargeted(config, modules)
    if stray:
        raise AdapterError(
            f"{folder}: target_modules in {CONFIG_NAME} does not reach {stray[0]} (one of {len(stray)}), whose factors "
            f"are in {WEIGHTS_NAME}: PEFT would drop them. Name it in target_modules (and not in exclude_modules, nor outside "
            "layers_to_transform), or save the adapter again."
        )
    return Adapter(config, modules, read_base_record(folder, config))


def _refuse(folder: Path, problems: list[Problem]) -> None:
    if problems:
        found = "\n".join(f"  - {problem}" for problem in problems)
        raise AdapterError(
            f"{folder} is not plain LoRA on linear layers, the only kind that can be used here:\n{found}"
        )


def read_config(folder: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a folder, unchecked.

    Raises:
        AdapterError: there is none, or it is not a JSON mapping.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        below = sorted(p.parent.name for p in Path(folder).glob(f"*/{CONFIG_NAME}")) if Path(folder).is_dir() else []
        hint = (
            f"It has adapters in {', '.join(below)}: give one of these" if below else "Give the folder that PEFT saved"
        )
        raise AdapterError(f"{folder} is not an adapter folder: it has no {CONFIG_NAME}. {hint}.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); save the adapter again.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} contains a {type(config).__name__}, not a mapping; save the adapter again.")
    for key in ("base_model_name_or_path", "revision", "task_type", "peft_type"):
        if not isinstance(config.get(key), str | None):
            raise AdapterError(f"{path}: {key} is not a text; save the adapter again.")
    return config


def weights_path(folder: str | Path) -> Path:
    """The adapter's safetensors file.

    Raises:
        AdapterError: there is none, or only a pickle.
    """
    path = Path(folder) / WEIGHTS_NAME
    if path.is_file():
        return path
    if (Path(folder) / "adapter_model.bin").is_file():
        raise AdapterError(
            f"{folder} contains adapter_model.bin, a pickle, which can run any code when opened and is never read here. "
            "On a machine where you trust it, load it with PEFT and save_pretrained(folder): that writes safetensors."
        )
    raise AdapterError(f"{folder} has a {CONFIG_NAME} but no {WEIGHTS_NAME}; save the adapter again.")


def read_base_record(folder: str | Path, config: Mapping[str, Any] | None = None) -> BaseRecord:
    """The base that an adapter folder records: name and revision from the config, digest from the weights or the card."""
    folder = Path(folder)
    config = read_config(folder) if config is None else config
    weights = folder / WEIGHTS_NAME
    digest = stored_metadata(weights).get(DIGEST_KEY) if weights.is_file() else None
    if digest is None:
        digest = _front_matter(folder / CARD_NAME).get(DIGEST_KEY)
    return BaseRecord(
        config.get("base_model_name_or_path") or None,
        config.get("revision") or None,
        str(digest) if isinstance(digest, str | int) and digest else None,
    )


def _front_matter(card: Path) -> dict[str, Any]:
    """The YAML between the first two '---' lines of a card; empty if missing or invalid."""
    if not card.is_file():
        return {}
    parts = card.read_text("utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        data = load_yaml(parts[1])
    except NotPlainYaml:
        return {}
    return data if isinstance(data, dict) else {}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = weights_path(folder)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping: it has keys() alone)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise AdapterError(f"{path} is damaged ({error}). Copy or save the adapter again.") from error


def first_tensor(folder: str | Path, holds: Callable[[Tensor], bool], side: str = "[AB]") -> str | None:
    """The name of the first factor in an adapter's file for which a condition holds; None if there is none.

    Args:
        folder: the adapter's folder.
        holds: the condition.
        side: ``A`` or ``B`` to look at one factor of each pair only.

    Raises:
        AdapterError: the file is damaged.
    """
    tensors = _read_tensors(Path(folder))
    matched = ((name, value, LORA_TENSOR.fullmatch(name)) for name, value in tensors.items())
    return next((name for name, value, match in matched if match and match["side"] in side and holds(value)), None)


def _pairs(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module. Raises if one is missing."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LORA_TENSOR.fullmatch(name)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise AdapterError(f"{folder / WEIGHTS_NAME} has no LoRA factors; save the adapter again.")
    for module, pair in sides.items():
        if len(pair) == 1:
            raise AdapterError(
                f"{folder / WEIGHTS_NAME}: {module} has {min(pair)} but not the other factor; save it again."
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sorted(sides.items())}


def _factors(folder: Path, module: str, pair: tuple[Tensor, Tensor], rank: int, scaling: float) -> Factors:
    a, b = pair
    where = f"{folder / WEIGHTS_NAME}: {module}"
    shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise AdapterError(
            f"{where} has {shapes}; (r, in) and (out, r) are needed. Convolutions are not supported. Empty factors come from "
            "saving a sharded model without gathering it first: save it again through the trainer."
        )
    if a.shape[0] != rank:
        raise AdapterError(
            f"{where} has {shapes}, but {CONFIG_NAME} says rank {rank}; save config and weights together. (PEFT sorts "
            "rank_pattern when it saves, which matters if two keys match one module: use disjoint keys.)"
        )
    for side, tensor in (("A", a), ("B", b)):
        if tensor.dtype not in _FLOATS:
            raise AdapterError(f"{where} has {side} in {tensor.dtype}; convert it to float32, bfloat16 or float16.")
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"{where} has NaN or infinity in {side}: training diverged. Use an earlier checkpoint, or train again with a "
                "smaller learning rate."
            )
    if not torch.isfinite(b.float() * scaling).all():
        raise AdapterError(f"{where} is infinite once scaled by {scaling:.3g}; correct lora_alpha in {CONFIG_NAME}.")
    return Factors(a, b, scaling)


def save_adapter(adapter: Adapter, folder: str | Path, *, card: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter as a PEFT folder, atomically and with the permissions of any new file there.

    Args:
        adapter: the adapter; its config must give each module its scaling.
        folder: the new folder; parents are created.
        card: the text of README.md, or None for no card.
        overwrite: replace an existing adapter.

    Raises:
        AdapterError: the folder exists, or config and factors contradict each other.
    """
    scalings = ranks_and_scalings(adapter.config, adapter.modules)
    for module, factors in adapter.modules.items():
        rank, scaling = scalings[module]
        if rank != factors.rank or not math.isclose(scaling, factors.scaling, rel_tol=1e-12):
            raise AdapterError(
                f"{module} has rank {factors.rank} and scaling {factors.scaling}, but the config gives {rank} and {scaling}. "
                "Use plain_config, or change both together."
            )
    config = {
        **adapter.config,
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.base.revision,
    }
    metadata = {"format": "pt"} | ({DIGEST_KEY: adapter.base.digest} if adapter.base.digest else {})
    tensors = {
        # copies: safetensors refuses two names for one storage, such as a layer used twice
        f"base_model.model.{module}.lora_{side}.weight": value.detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for module, factors in sorted(adapter.modules.items())
        for side, value in (("A", factors.A), ("B", factors.B))
    }
    with new_folder(folder, overwrite=overwrite) as new:
        # Only the top level is sorted: the order of patterns matters. default=sorted turns sets into lists.
        text = json.dumps(dict(sorted(config.items())), indent=2, default=sorted)
        (new / CONFIG_NAME).write_text(text + "\n", "utf-8")
        save_weights(tensors, new / WEIGHTS_NAME, metadata)
        if card is not None:
            (new / CARD_NAME).write_text(card, "utf-8")
    return Path(folder)


def save_weights(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write safetensors with the permissions of any new file. The library uses 0600, which servers cannot read."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata=metadata)
    _sort_metadata(file)
    file.chmod(mode)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata in the header. The library writes it in random order, so equal adapters would differ."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # the format allows padding with spaces
            stream.seek(8)
            stream.write(text.ljust(length))


@contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder next to ``target``: renamed to it at the end, removed if anything fails.

    Args:
        target: the new folder; parents are created.
        overwrite: replace an existing adapter or model folder.

    Raises:
        AdapterError: ``target`` exists and may not be replaced.
    """
    target = Path(target)
    taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken and not (overwrite and ((target / CONFIG_NAME).is_file() or (target / "config.json").is_file())):
        allowed = (
            "it has no adapter or model, and nothing else is replaced" if overwrite else "overwrite=True replaces it"
        )
        raise AdapterError(f"{target} already exists; choose another folder ({allowed}).")
    with writing(target, "target folder"), files.new_folder(target) as new:
        yield new
