"""Checkpoints: folders of safetensors and JSON, written atomically, verified by digest, and bound to one run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.model.weights import whole
from llm_forget.stop import Measurement
from llm_forget.utils.digests import json_digest, weights_digest
from llm_forget.utils.files import file_digest, new_folder
from llm_forget.utils.safe_yaml import read_yaml
from llm_forget.utils.written import remove_written

CHECKPOINT_FILES = ("checkpoint.json", "state.json", "tensors.safetensors", TRAINER_STATE_NAME)
_MANIFEST, _STATE, _TENSORS = "checkpoint.json", "state.json", "tensors.safetensors"
_STEP = re.compile(r"step-(\d{8,})")
_SCHEMA = 1
# Recipe fields that may differ when a run is resumed, because they do not affect the weights.
_FREE = {"output_dir", "overwrite", "resume", "train.save_steps", "train.keep_checkpoints", "train.trackers"}


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """Split a nested state into a JSON tree and its tensors, which are added to ``tensors`` with their path as name.

    ``unpack`` restores numbers, strings, tuples, mappings with any keys, NumPy arrays and NaN exactly. A sharded tensor is
    gathered, so every process must call this function.

    Raises:
        TypeError: a value has another type; the message names its path.
    """
    if isinstance(value, Tensor):
        while place in tensors:  # paths can collide: a key may contain a slash, and the keys 1 and "1" look the same
            place += "'"
        tensors[place] = whole(value).detach().cpu().contiguous().clone()
        return {"$tensor": place}
    if isinstance(value, np.ndarray):
        return {"$array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, tensors, f"{place}/{key}") for key, item in value.items()}
        return {"$pairs": [[pack(k, tensors), pack(item, tensors, f"{place}/{k}")] for k, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{place}/{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place or 'the state'} is a {type(value).__name__}, which cannot be stored in a checkpoint")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``pack``."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$array" in tree:
        return np.array(tree["$array"], dtype=tree["dtype"])
    if "$pairs" in tree:
        return {unpack(key, tensors): unpack(item, tensors) for key, item in tree["$pairs"]}
    if "$tuple" in tree:
        return tuple(unpack(item, tensors) for item in tree["$tuple"])
    return {key: unpack(item, tensors) for key, item in tree.items()}


def write_checkpoint(
    parent: Path,
    step: int,
    tree: Any,
    tensors: dict[str, Tensor],
    identity: Mapping[str, Any],
    texts: Mapping[str, str],
    keep: int,
) -> Path:
    """Write one checkpoint, then remove all but the newest ``keep``.

    Args:
        parent: the folder of this run's checkpoints.
        step: number of finished optimizer steps.
        tree: from ``pack``.
        tensors: from ``pack``.
        identity: from ``run_identity``; a run with another identity cannot resume from this checkpoint.
        texts: file name → content of further small files.
        keep: number of checkpoints to keep, at least 1.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are unchanged.
    """
    folder = parent / f"step-{step:08d}"
    with new_folder(folder) as new:
        try:
            save_file(tensors, new / _TENSORS)
        except Exception as error:  # safetensors has its own exception for a full disk
            raise OSError(f"cannot write {new / _TENSORS}: {error}") from error
        (new / _STATE).write_text(json.dumps(tree), encoding="utf-8")
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        files = {path.name: file_digest(path) for path in sorted(new.iterdir())}
        manifest = {"schema": _SCHEMA, "step": step, "identity": identity, "files": files}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for old in checkpoints(parent)[:-keep]:
        remove_written(old, CHECKPOINT_FILES)
    return folder


def checkpoints(parent: Path) -> list[Path]:
    """All checkpoints in a folder, the newest last."""
    found = [path for path in parent.glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_whole(parent: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None. ``tell`` is called with a note about every damaged one."""
    for folder in reversed(checkpoints(parent)):
        damage = damaged(folder)
        if damage is None:
            return folder
        tell(f"the checkpoint {folder} is damaged ({damage}) and is not used")
    return None


def damaged(folder: Path) -> str | None:
    """Describe the damage to a checkpoint's files; None if there is none."""
    try:
        manifest = _manifest(folder)
        if manifest["schema"] != _SCHEMA:
            return f"schema {manifest['schema']}, but this version reads {_SCHEMA}"
        for name, digest in manifest["files"].items():
            if file_digest(folder / name) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_checkpoint(folder: Path) -> Any:
    """Read the packed state, on the CPU."""
    return unpack(json.loads((folder / _STATE).read_text(encoding="utf-8")), load_file(folder / _TENSORS))


def run_identity(
    recipe: UnlearnRecipe, sets: Mapping[str, Sequence[Encoded]], before: Measurement | None, base: str | None
) -> dict[str, Any]:
    """Values that identify a run. A checkpoint can only be resumed by the run that wrote it.

    Args:
        recipe: the checked recipe.
        sets: set → encoded rows; only their digests are stored.
        before: the measurement before the first step; it distinguishes models without a folder, which have no digest.
        base: the folder or hub id of the model; None if the caller loaded it.

    Returns:
        The recipe, digests of the rows and the weights, the first measurement, and the number of processes.
    """
    values = asdict(recipe)
    train = {key: value for key, value in values["train"].items() if f"train.{key}" not in _FREE}
    folders = {"base": base, "adapter": recipe.model.adapter}
    return {
        "recipe": {**{key: value for key, value in values.items() if key not in _FREE}, "train": train},
        "data": {name: _rows_digest(rows) for name, rows in sets.items()},
        "weights": {
            name: weights_digest(folder) for name, folder in folders.items() if folder and Path(folder).is_dir()
        },
        "before": asdict(before) if before else None,
        "processes": PartialState().num_processes,
    }


def _rows_digest(rows: Sequence[Encoded]) -> str:
    return json_digest([[row.id, list(row.input_ids), row.prompt_length] for row in rows])


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to this run.

    Raises:
        UserError: the identities differ; the message lists every difference.
    """
    before, now = (dict(_flat(values)) for values in (_manifest(folder)["identity"], identity))
    differing = [key for key in {**before, **now} if not _alike(before.get(key), now.get(key))]
    if differing:
        lines = "\n".join(f"  - {key}: {before.get(key)} in the checkpoint, {now.get(key)} now" for key in differing)
        raise UserError(
            f"the checkpoint {folder} belongs to another run:\n{lines}\n"
            "Restore these values, or start again with --overwrite true and without --resume"
        )


def is_of_run(folder: Path, run: Path) -> bool:
    """Whether a checkpoint belongs to the complete run in a folder: same recipe, same base and same first measurement."""
    try:
        identity = _manifest(folder)["identity"]
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        recipe = read_yaml(run / "recipe.yaml")
        train = {key: value for key, value in recipe["train"].items() if f"train.{key}" not in _FREE}
        same_recipe = {key: value for key, value in recipe.items() if key not in _FREE} | {"train": train}
        base = identity["weights"].get("base")
        return (
            dict(_flat(same_recipe)) == dict(_flat(identity["recipe"]))
            and result["before"] == identity["before"]
            and result.get("base_digest") in (None, base)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _alike(before: Any, now: Any) -> bool:
    """Whether two values are equal, or floats that differ by at most 0.1 %, as a measurement on another machine may."""
    if isinstance(before, float) and isinstance(now, float):
        return before == now or abs(before - now) <= 1e-3 * max(abs(before), abs(now)) or before != before != now
    return bool(before == now)


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        return [pair for key, item in values.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, values)]


def _manifest(folder: Path) -> Any:
    return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))


def rng_state() -> dict[str, Any]:
    """The state of every random generator that training may use in this process."""
    import random

    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what ``rng_state`` returned."""
    import random

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
