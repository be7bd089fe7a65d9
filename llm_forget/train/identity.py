"""What a run is, in values that can be compared: a checkpoint goes on only as the run that it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm_forget.data.encode import Encoded
from llm_forget.model.load import locate_model
from llm_forget.stop import Measurement
from llm_forget.utils.digests import json_digest, weights_digest

# What may change between an interruption and going on: it does not change a weight.
_FREE = {"output_dir", "overwrite", "resume", "train.save_steps", "train.keep_checkpoints", "train.trackers"}


def run_identity(
    recipe: Any, sets: Mapping[str, Sequence[Encoded]], before: Measurement | None, *, in_memory: bool = False
) -> dict[str, Any]:
    """Recipe, digests of the rows and the weights, what the model says before the first step, and how many processes.

    Args:
        recipe: of unlearning or fine-tuning.
        sets: the encoded rows, by name; only digests of them are kept.
        before: measured before the first step; it tells models apart that no folder's digest can.
        in_memory: the model was given, and lies in no folder that is known.
    """
    values = asdict(recipe)
    train = {key: value for key, value in values["train"].items() if f"train.{key}" not in _FREE}
    base = None if in_memory else locate_model(recipe.model.name)
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
