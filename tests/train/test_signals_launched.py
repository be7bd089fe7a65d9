"""Test signals to a run that `accelerate launch` started: it saves and ends, and a resumed run gives the same adapter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import ROOT
from safetensors.torch import load_file
from small_run import small_values, write_things

pytestmark = pytest.mark.slow
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]  # fmt: skip
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("things"))


def recipe(things: Path, folder: Path) -> Path:
    values: dict[str, Any] = small_values(things, folder / "v")
    values["train"] |= {"epochs": 25, "save_steps": 0}
    values["stop"] = {"forget_target": None, "utility_floor": 0.0, "every": 1}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@contextmanager
def launched(file: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A launched run in its own process group; all of it is gone afterwards."""
    command = [*LAUNCH, str(ROOT / "recipes" / "unlearn.py"), "--config", str(file), *more]
    with subprocess.Popen(
        command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The processes of a group, by their state; zombies do not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(entry.parent.name))
    return found


def until_step(process: subprocess.Popen[str], step: int) -> str:
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if f"step {step}:" in line:
            return told
    raise AssertionError(told)


@pytest.mark.parametrize(
    ("name", "to_all"), [("SIGTERM", False), ("SIGTERM", True), ("SIGINT", True), ("SIGHUP", True)]
)
def test_a_launched_run_saves_and_ends(name: str, to_all: bool, things: Path, tmp_path: Path) -> None:
    """A signal to the launcher alone ends it at once; the run hears of it from the kernel."""
    file, number = recipe(things, tmp_path), getattr(signal, name)
    with launched(file) as process:
        told = until_step(process, 5)
        (os.killpg if to_all else os.kill)(process.pid, number)
        assert process.stderr is not None
        told += process.stderr.read()  # ends when the run has ended too
        process.wait(30)
        deadline = time.monotonic() + 10
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not members(process.pid), "no process is left"
    assert told.count(f"received {name}: a checkpoint is saved") == 1
    assert f"interrupted: received {name} after step" in told
    assert "llm_forget" not in told.partition("Traceback")[2], "no traceback of ours"
    assert len(list((tmp_path / "v.checkpoints").rglob("checkpoint.json"))) == 1
    assert not (tmp_path / "v").exists()


def test_a_run_that_lost_its_launcher_resumes_to_the_same_adapter(things: Path, tmp_path: Path) -> None:
    """The launcher is killed, so that nothing passes a signal on; the resumed run equals one without interruption."""
    file = recipe(things, tmp_path)
    (tmp_path / "alone").mkdir()
    with launched(recipe(things, tmp_path / "alone")) as process:
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(120) == 0, told
    with launched(file) as process:
        until_step(process, 5)
        process.kill()
        assert process.stderr is not None
        assert "interrupted: received SIGTERM after step" in process.stderr.read()
    with launched(file, "--resume", "true") as process:
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(120) == 0, told
    assert "resuming from" in told
    found, whole = (
        load_file(folder / "v" / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "alone")
    )
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "recipe.yaml", "v"]


def test_a_run_without_launcher_keeps_the_status(things: Path, tmp_path: Path) -> None:
    file = recipe(things, tmp_path)
    for name, status in (("SIGINT", 130), ("SIGHUP", 129)):
        command = [sys.executable, str(ROOT / "recipes" / "unlearn.py"), "--config", str(file), "--resume", "true"]
        with subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True) as process:
            until_step(process, 25 if name == "SIGHUP" else 5)
            process.send_signal(getattr(signal, name))
            assert process.stderr is not None
            told = process.stderr.read()
            assert process.wait(30) == status
        assert f"interrupted: received {name} after step" in told
        assert "Traceback" not in told
