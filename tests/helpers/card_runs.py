"""Run the named methods on the GPU if one is visible, else on the CPU: python card_runs.py MODEL_AND_DATA OUTPUT NAME …."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


def recipe_of(things: Path, output: Path, method: str, /, **changes: Any) -> UnlearnRecipe:
    """Return a recipe of four steps in fp32, with SGD: Adam turns rounding errors of near-zero gradients into full steps."""
    values: dict[str, Any] = {
        "model": {"name": str(things / "model"), "dtype": "float32"},
        "data": {name: {"path": str(things / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": method, **({"coefficient": 5.0, "layer": 1} if method == "rmu" else {})},
        "adapter": {"rank": 8, "alpha": 16},
        "alternative": {"source": "column"},
        "train": {"epochs": 4, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.05},
        "stop": {"forget_target": None, "utility_floor": 0.0, "every": 2},
        "output_dir": str(output / method),
    }
    return build(UnlearnRecipe, {**values, **changes}, "test")


def losses_of(run: Path) -> list[float]:
    """Return the loss of every step from the run's log."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def main() -> None:
    """Run all named methods in the given order."""
    things, output = Path(sys.argv[1]), Path(sys.argv[2])
    for name in sys.argv[3:]:
        unlearn(recipe_of(things, output, name), Console(file=io.StringIO()))


if __name__ == "__main__":
    main()
