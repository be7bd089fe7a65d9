"""The smallest unlearning run: a model of one block, three forget rows and three retain rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_forget.testing import tiny_model, tiny_tokenizer


def write_things(folder: Path) -> Path:
    """Write a model and data files to a folder."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, hidden=16, layers=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in ("forget", "retain"):
        rows = [{"question": f"{name} {row}?", "answer": f"{row}"} for row in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small_values(things: Path, output: Path) -> dict[str, Any]:
    """Return a recipe of two steps that writes a checkpoint after the first."""
    return {
        "model": {"name": str(things / "model"), "dtype": "float32"},
        "data": {name: {"path": str(things / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "grad_diff"},
        "adapter": {"rank": 2, "alpha": 2},
        "train": {"epochs": 1, "batch_size": 2, "save_steps": 1},
        "output_dir": str(output),
    }
