"""Test methods and wrappers on two processes, which give the result of one, and a custom method from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from test_two_processes import quiet, read_metrics, recipe

from llm_forget.config import UnlearnRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

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


def run(values: dict[str, Any], output: Path, batch_size: int = 4) -> None:
    torch.set_num_threads(1)
    if torch.distributed.is_initialized():  # as a real launcher does
        os.environ["RANK"] = str(torch.distributed.get_rank())
        AcceleratorState._reset_state(reset_partial_state=True)  # a fork inherits this process's
    train = {**values["train"], "batch_size": batch_size}
    unlearn(build(UnlearnRecipe, {**values, "train": train, "output_dir": str(output)}, "test"), quiet())


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_give_the_run_of_one(variant: str, recipe: Path, tmp_path: Path) -> None:
    values = {**yaml.safe_load(recipe.read_text()), **VARIANTS[variant]}
    values["model"] = {**values["model"], "dtype": "float32"}
    # with SGD the update is the gradient; Adam would amplify the rounding errors of near-zero gradients
    values["train"] = {"epochs": 3, "learning_rate": 0.01, "optimizer": "sgd"}
    run(values, tmp_path / "one")
    debug_launcher(run, (values, tmp_path / "two", 2), num_processes=2)
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


def test_a_custom_method_is_one_file(recipe: Path, tmp_path: Path) -> None:
    """The file is in another folder, and the recipe names it by its path."""
    (tmp_path / "mine.py").write_text(MINE)
    method = {"name": str(tmp_path / "mine.py"), "push": 0.5}
    run({**yaml.safe_load(recipe.read_text()), "method": method, "retain": {"name": "default"}}, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["method"] == str(tmp_path / "mine.py")
    checks = [row["forget"] for row in read_metrics(tmp_path / "run") if row["phase"] == "check"]
    assert checks[-1] < result["before"]["forget"]
