"""Test real launches of methods and wrappers: two processes give the result of one, and custom methods load from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_two_processes import ONE, TWO, launch, read_metrics, recipe

__all__ = ["recipe"]

VARIANTS: dict[str, dict[str, Any]] = {
    "every wrapper over dpo against model-written answers, all weights": {
        "method": {"name": "dpo"},
        "alternative": {"source": "model", "max_new_tokens": 4},
        "retain": {"name": "nll"},
        "wrappers": [
            {"name": "straight_through"},
            {"name": "sam"},
            {"name": "gru"},
            {"name": "dual", "step_size": 5.0},
        ],
    },
    "rmu with an adapter": {
        "method": {"name": "rmu", "coefficient": 4.0},
        "retain": {"name": "default"},
        "adapter": {"rank": 4, "alpha": 4},
    },
}
MINE = '''"""Falls with the answer's length in tokens: no method of ours."""

from dataclasses import dataclass
from typing import ClassVar

from llm_forget.methods import Needs


@dataclass(frozen=True)
class Mine:
    push: float = 1.0
    needs: ClassVar[Needs] = Needs()
    default_retain: ClassVar[str | None] = "nll"
    bounded: ClassVar[bool] = False
    towards: ClassVar[bool] = False
    paper: ClassVar[str] = "none"

    def forget_loss(self, forget):
        return self.push * forget.logps
'''


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_give_the_run_of_one(variant: str, recipe: Path, tmp_path: Path) -> None:
    values = {**yaml.safe_load(recipe.read_text()), **VARIANTS[variant]}
    values["model"] = {**values["model"], "dtype": "float32"}
    # with SGD the update is the gradient; Adam would amplify the rounding errors of near-zero gradients
    values["train"] = {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "optimizer": "sgd"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    alone = launch(ONE, "--config", str(path), "--output_dir", str(tmp_path / "one"))
    assert alone.returncode == 0, alone.stderr
    together = launch(
        TWO,
        "--config",
        str(path),
        "--output_dir",
        str(tmp_path / "two"),
        "--train.batch_size=2",
        ACCELERATE_USE_CPU="true",
    )
    assert together.returncode == 0, together.stderr
    first, second = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [(row["phase"], row["step"]) for row in first] == [(row["phase"], row["step"]) for row in second]
    names = {
        "loss",
        "forget_loss",
        "retain_loss",
        "retain_weight",
        "grad_norm",
        "forget_probability",
        "forget",
        "retain",
    }
    for mine, other in zip(first, second, strict=True):
        for name in mine.keys() & other.keys() & names:
            assert other[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-4), (name, mine["step"])
    losses = [row["loss"] for row in first if "loss" in row]
    assert max(losses) - min(losses) > 1e-3, "the run moved"


@pytest.mark.slow
def test_a_custom_method_is_one_file(recipe: Path, tmp_path: Path) -> None:
    """The file is in another folder, the recipe names it by its path, and the launch command runs it."""
    (tmp_path / "mine.py").write_text(MINE)
    done = launch(
        ONE,
        *("--config", str(recipe), "--output_dir", str(tmp_path / "run")),
        *("--method", f"{{name: {tmp_path / 'mine.py'}, push: 0.5}}", "--retain.name", "default"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["method"] == str(tmp_path / "mine.py")
    checks = [row["forget"] for row in read_metrics(tmp_path / "run") if row["phase"] == "check"]
    assert checks[-1] < result["before"]["forget"]
