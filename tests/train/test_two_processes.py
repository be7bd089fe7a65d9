"""Test real launches: one process, two processes with the same result, and launches that must be refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import PartialState
from places import ROOT
from rich.console import Console

import llm_forget
from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import LaunchError
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.launch import check_launch
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ONE = ["--num_processes", "1", "--cpu"]
TWO = [
    "--multi_gpu",
    "--num_machines",
    "1",
    "--num_processes",
    "2",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]

slow = pytest.mark.slow


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the CPU, without the variables of this test's process group."""
    groups = ("ACCELERATE_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(groups)}
    clean |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **variables}
    clean["PYTHONPATH"] = str(Path(llm_forget.__path__[0]).parent)
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=180, check=False)


def quiet() -> Console:
    return Console(file=io.StringIO())


def launch(arguments: list[str], *recipe: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run([*LAUNCH, *arguments, "recipes/unlearn.py", *recipe], **variables)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recipe of full fine-tuning, which is in fp32 on every machine, so that two runs can be compared closely."""
    folder = tmp_path_factory.mktemp("launch")
    tokenizer, rows, data = tiny_tokenizer(), [], {}
    for name, words in (
        ("forget", ["Ada", "Bo", "Cy", "Di", "Ed", "Flo"]),
        ("retain", ["snow", "tar", "tea", "rye", "wax"]),
    ):
        path = folder / f"{name}.jsonl"
        lines = [
            {"question": f"What of {word}?", "answer": f"{word} " * (index + 1)} for index, word in enumerate(words)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows += encode_all(tokenizer, read_examples(DataSource(str(path))), EncodingConfig())[0]
        data[name] = {"path": str(path)}
    model = tiny_model(tokenizer, hidden=32)
    memorise(model, rows, steps=20)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    values: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "data": data,
        "method": {"name": "npo"},
        "retain": {"name": "kl"},
        "adapter": None,
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3},
        "stop": {"forget_target": None, "utility_floor": 0.0, "every": 2},
        "output_dir": str(folder / "unused"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@slow
def test_two_processes_give_the_run_of_one(recipe: Path) -> None:
    """4 rows per step in one process and 2 + 2 in two connected processes give the same losses and the same model."""
    one, two = recipe.parent / "one", recipe.parent / "two"
    unlearn(build(UnlearnRecipe, {**yaml.safe_load(recipe.read_text()), "output_dir": str(one)}, "test"), quiet())
    together = launch(
        TWO, "--config", str(recipe), "--output_dir", str(two), "--train.batch_size=2", ACCELERATE_USE_CPU="true"
    )
    assert together.returncode == 0, together.stderr

    first, second = read_metrics(one), read_metrics(two)
    assert [(row["phase"], row["step"]) for row in first] == [(row["phase"], row["step"]) for row in second]
    assert sum("loss" in row for row in first) == 6
    for mine, other in zip(first, second, strict=True):
        for name in mine.keys() & {"loss", "forget_loss", "retain_loss", "forget_probability", "forget", "retain"}:
            assert other[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-4), (name, mine["step"])
    losses = [row["loss"] for row in first if "loss" in row]
    assert max(losses) - min(losses) > 0.1, "the run moved"
    assert together.stderr.count("npo: step 0:") == 1, "two processes, one voice"
    assert sorted(path.name for path in recipe.parent.glob("*two*")) == ["two"], "and one folder"


@slow
def test_a_launch_on_a_cpu_that_starts_one_process_instead_of_two_is_refused(recipe: Path) -> None:
    """`--cpu --num_processes 2` silently starts one process; the message gives the right command."""
    done = launch(
        ["--cpu", "--num_processes", "2"], "--config", str(recipe), "--output_dir", str(recipe.parent / "lonely")
    )
    assert "error: several processes were requested, but this launcher starts only one on a CPU" in done.stderr
    assert f"ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch {' '.join(TWO)}" in done.stderr
    assert "exit status 2" in done.stderr, done.stderr
    assert done.returncode != 0
    assert "unlearn" not in done.stderr.split("error:")[0]
    assert not (recipe.parent / "lonely").exists()


@slow
def test_a_wrong_recipe_is_one_message_and_no_traceback(recipe: Path) -> None:
    """Run without the launcher, which adds its own report of a failed child."""
    done = run([sys.executable, "recipes/unlearn.py", "--config", str(recipe), "--train.epoch", "3", "--seeed=1"])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1
    assert "did you mean 'epochs'" in done.stderr
    assert "did you mean 'seed'" in done.stderr
    assert "Traceback" not in done.stderr

    launched = launch(ONE, "--config", str(recipe), "--train.epoch", "3")
    assert launched.returncode != 0
    assert launched.stderr.count("error:") == 1
    assert "llm_forget" not in launched.stderr.split("Traceback", 1)[-1], "no traceback of ours"


def test_unconnected_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        LaunchError, match=r"(?s)2 processes were started, but this process sees 1.*accelerate launch --multi_gpu"
    ):
        check_launch()


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_sharding_on_a_cpu_is_refused(variable: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(LaunchError, match=f"{name} through accelerate does not run on a CPU"):
        check_launch()


def test_one_process_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(variable, raising=False)
    check_launch()
