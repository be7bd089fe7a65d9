"""Decide which files of a folder are the model's weights, exactly as Transformers will load them.

Digests, merges, checks and ``from_pretrained`` must agree on these files. A folder in which they could differ is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_forget.errors import UserError

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
# Weights in other formats. None of them is ever read, copied or digested.
OTHER_FORMATS = frozenset(
    [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".ot", ".npz"]
)

# Shards of torch's distributed checkpoints, which Transformers prefers to all other files.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_CONVERT = (
    "Pickled weights (.bin, .pt) are never read: convert them once with model.save_pretrained(folder), on a machine where you "
    "trust them."
)


def weight_files(source: str | Path) -> list[Path]:
    """The safetensors files of a model: ``model.safetensors``, else the shards in its index.

    For an adapter's folder it is the adapter's own file.

    Args:
        source: a model folder, an adapter folder, or one safetensors file.

    Raises:
        UserError: the folder does not exist or has no safetensors weights, a shard is missing, or Transformers could load other
            files than these: ``transformers_weights`` in the config, an adapter in the base's folder, a distributed checkpoint,
            or an index next to a single file that is not in it.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .safetensors file; give the folder that holds the weights.")
    if (path / ADAPTER_CONFIG_NAME).is_file() and not (path / CONFIG_NAME).is_file():
        return _adapter_file(path)
    _refuse_other_sources(path)
    single, index = path / SINGLE_NAME, path / INDEX_NAME
    if single.is_file():
        if index.is_file() and set(_shard_names(index)) != {SINGLE_NAME}:
            raise UserError(
                f"{path} holds {SINGLE_NAME} and an index of other files ({INDEX_NAME}). Transformers loads the single file and "
                "other programs the shards. Keep one copy of the weights in the folder."
            )
        return [single]
    if index.is_file():
        return _shards(index)
    raise UserError(_nothing(path))


def model_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json; empty if there is none.

    Raises:
        UserError: it is not a JSON mapping.
    """
    path = Path(folder) / CONFIG_NAME
    return json_mapping(path) if path.is_file() else {}


def json_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or is not a mapping.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is empty" if path.is_file() and not path.stat().st_size else _first_line(error)
        raise UserError(f"{path} is not a JSON mapping ({reason}); download or save it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON mapping (it is a {type(value).__name__}); download or save it again.")
    return value


def config_sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config and the configs nested in it, such as ``text_config``."""
    waiting: list[Any] = [config]
    while waiting:
        section = waiting.pop()
        yield section
        waiting += [value for value in section.values() if isinstance(value, dict)]


def _refuse_other_sources(path: Path) -> None:
    """Refuse a folder from which Transformers would load something else or something more."""
    if (path / ADAPTER_CONFIG_NAME).is_file():
        raise UserError(
            f"{path} holds a model and an adapter ({ADAPTER_CONFIG_NAME}): Transformers would attach the adapter to the model. "
            f"Move {ADAPTER_CONFIG_NAME} and the adapter's weights to a folder of their own, and give that as the adapter."
        )
    for section in config_sections(model_config(path)):
        if section.get("transformers_weights") is not None:
            raise UserError(
                f"{path / CONFIG_NAME} names other weights (transformers_weights: {section['transformers_weights']!r}). Rename "
                f"that file to {SINGLE_NAME} in a folder without other weights, and remove the key."
            )
    distributed = next((item.name for item in path.iterdir() if _DISTRIBUTED.fullmatch(item.name)), None)
    if distributed:
        raise UserError(
            f"{path} holds a distributed checkpoint ({distributed}, …), which is not supported. Load it with Transformers and "
            "save it to another folder with model.save_pretrained(folder)."
        )


def _adapter_file(path: Path) -> list[Path]:
    file = path / ADAPTER_WEIGHTS_NAME
    if not file.is_file():
        raise UserError(
            f"{path} is the folder of an adapter and holds no {ADAPTER_WEIGHTS_NAME}; save the adapter again."
        )
    return [file]


def _shard_names(index: Path) -> list[str]:
    """The files that an index lists, in order."""
    weight_map = json_mapping(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is not an index of shards (no weight_map); download or save the model again.")
    names = list(weight_map.values())
    wrong = next((name for name in names if not isinstance(name, str) or Path(name).name != name), None)
    if wrong is not None:
        raise UserError(
            f"{index} names the shard {wrong!r}; only files of the same folder are read. Save the model again."
        )
    pickled = next((name for name in names if not name.endswith(".safetensors")), None)
    if pickled is not None:
        raise UserError(f"{index} names {pickled}, which is not a .safetensors file. {_CONVERT}")
    return sorted(set(names))


def _shards(index: Path) -> list[Path]:
    names = _shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names missing shards: {_some(missing)}. Download the model again.")
    return [index.parent / name for name in names]


def _nothing(path: Path) -> str:
    """Why a folder has no weights."""
    broken = [name for name in (SINGLE_NAME, INDEX_NAME) if (path / name).is_symlink()]
    if broken:
        return f"{path / broken[0]} is a link to a file that does not exist; download the model again."
    found = sorted(item.name for item in path.iterdir() if item.suffix in OTHER_FORMATS)
    strays = sorted(item.name for item in path.glob("*.safetensors"))
    if strays:
        return (
            f"{path} holds {_some(strays)}, but neither {SINGLE_NAME} nor {INDEX_NAME}, so Transformers would not load it. "
            f"Rename a single file to {SINGLE_NAME}, or download the missing index."
        )
    return f"{path} holds no .safetensors file" + (f" ({_some(found)} only). " if found else ". ") + _CONVERT


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
