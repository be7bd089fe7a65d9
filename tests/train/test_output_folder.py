"""Test that runs remove only what they wrote, refuse a second writer, and find a bad output folder before training."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from extras import needs
from rich.console import Console
from small_run import small_values, write_things

import llm_forget.train.finetune
import llm_forget.train.unlearn
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.train.finetune import finetune
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build
from llm_forget.utils.lock import locked


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("things"))


@pytest.fixture
def values(things: Path, tmp_path: Path) -> dict[str, Any]:
    return small_values(things, tmp_path / "v")


def run(values: dict[str, Any], **changes: Any) -> str:
    shown = io.StringIO()
    unlearn(build(UnlearnRecipe, {**values, **changes}, "test"), Console(file=shown, width=500))
    return shown.getvalue()


def learning(values: dict[str, Any], **changes: Any) -> FinetuneRecipe:
    kept = {key: values[key] for key in ("model", "adapter", "output_dir")}
    given = {**kept, "data": [values["data"]["forget"]], "train": {"epochs": 1, "batch_size": 2}, **changes}
    return build(FinetuneRecipe, given, "test")


@needs("tensorboard")
def test_what_lies_in_the_folders_of_checkpoints_and_logs_is_kept(values: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("v.checkpoints/phase-1/mine", "v.checkpoints/phase-1/step-00000001", "v.logs/tensorboard"):
        (tmp_path / folder).mkdir(parents=True)
    mine = ["v.checkpoints/thesis.txt", "v.checkpoints/phase-1/mine/thesis.txt", "v.logs/thesis.txt",
            "v.checkpoints/phase-1/step-00000001/thesis.txt", "v.logs/tensorboard/thesis.txt"]  # fmt: skip
    for name in mine:
        (tmp_path / name).write_text("x")
    run(values, train={**values["train"], "trackers": ["tensorboard"]}, overwrite=True)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("v.*/**/*") if path.is_file()]
    assert sorted(left) == sorted(mine)
    assert list((tmp_path / "v" / "logs").rglob("events.out.tfevents.*"))


def test_overwriting_says_what_goes_and_keeps_the_rest(values: dict[str, Any], tmp_path: Path) -> None:
    run(values)
    (tmp_path / "v" / "eval").mkdir()
    for name in ("notes.txt", "eval/demo.json", "adapter/mine.txt"):
        (tmp_path / "v" / name).write_text("x")
    shown = run(values, overwrite=True)
    assert "v is replaced when this run is complete: adapter, env.json, eval" in shown
    assert "Files that no run wrote are kept: adapter/mine.txt, notes.txt" in shown
    assert (tmp_path / "v" / "notes.txt").is_file()
    assert (tmp_path / "v" / "adapter" / "mine.txt").is_file()
    assert not (tmp_path / "v" / "eval").exists()
    finetune(learning(values, overwrite=True), Console(file=io.StringIO()))
    assert (tmp_path / "v" / "notes.txt").is_file()


def test_a_run_does_not_replace_what_it_reads(values: dict[str, Any], tmp_path: Path) -> None:
    finetune(learning(values), Console(file=io.StringIO()))
    values["model"] = {**values["model"], "name": str(tmp_path / "v" / "model")}
    with pytest.raises(UserError, match=r"contains model\.name"):
        run(values, overwrite=True)
    with pytest.raises(UserError, match=r"contains model\.name"):
        finetune(learning(values, overwrite=True), Console(file=io.StringIO()))


def test_two_writers_of_one_folder(values: dict[str, Any], tmp_path: Path) -> None:
    """The second is refused at its start by unlearn and finetune, with and without overwrite."""
    refused: list[str] = []

    def second(start: Any) -> None:
        try:
            start()
        except UserError as error:
            refused.append(str(error))

    with locked(tmp_path / "v"):
        quiet = Console(file=io.StringIO())
        for start in (lambda: run(values), lambda: run(values, overwrite=True), lambda: run(values, resume=True),
                      lambda: finetune(learning(values), quiet)):  # fmt: skip
            thread = threading.Thread(target=second, args=(start,))
            thread.start()
            thread.join()
    assert len(refused) == 4
    assert all("v is being written by process" in one for one in refused)
    assert not list(tmp_path.iterdir())


def test_a_bad_output_folder_is_found_before_a_model_is_loaded(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    (tmp_path / "file").write_text("x")
    (tmp_path / "v.checkpoints").write_text("x")
    for module in (llm_forget.train.unlearn, llm_forget.train.finetune):
        monkeypatch.setattr(module, "load_weights", never)
    quiet = Console(file=io.StringIO())
    for place in ("/proc/x", str(tmp_path / "file" / "below")):
        with pytest.raises(UserError, match=r"cannot be written"):
            run(values, output_dir=place)
        with pytest.raises(UserError, match=r"cannot be written"):
            finetune(learning(values, output_dir=place), quiet)
    with pytest.raises(UserError, match=r"v\.checkpoints, the folder for checkpoints, is a file"):
        run(values)


def test_a_link_as_output_folder_is_followed(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "v").symlink_to(tmp_path / "disk" / "real")
    run(values)
    with pytest.raises(RecipeError, match="already contains a run"):
        run(values)
    run(values, overwrite=True)
    assert (tmp_path / "v").is_symlink()
    assert (tmp_path / "disk" / "real" / "result.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "v"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_checkpoints_of_a_complete_run_are_removed_by_the_next_start(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed after its folder is in place leaves its checkpoints; those of another run stay."""
    with monkeypatch.context() as patch:
        patch.setattr(llm_forget.train.unlearn, "drop_checkpoints", lambda _: None)
        run(values)
        run(values, output_dir=str(tmp_path / "w"), seed=5)
    kept = shutil.copytree(tmp_path / "v.checkpoints", tmp_path / "kept")
    for resume in (True, False):
        assert (tmp_path / "v.checkpoints").is_dir()
        with pytest.raises(RecipeError, match="already contains a run"):
            run(values, resume=resume)
        assert not (tmp_path / "v.checkpoints").exists()
        shutil.copytree(tmp_path / "w.checkpoints", tmp_path / "v.checkpoints")
        with pytest.raises(RecipeError, match="already contains a run"):
            run(values, resume=resume)
        assert (tmp_path / "v.checkpoints").is_dir(), "they are of a run with another seed"
        shutil.rmtree(tmp_path / "v.checkpoints")
        shutil.copytree(kept, tmp_path / "v.checkpoints")


LIMITED = """
import io, json, resource, sys
from rich.console import Console
import llm_forget.train.finetune, llm_forget.train.run_folder
from llm_forget.cli.entry import run_entry
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.utils.build import build

values, kind = json.loads(sys.argv[1]), sys.argv[2]

def limit(module, name):
    real = getattr(module, name)
    def limited(*given, **more):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return real(*given, **more)
    setattr(module, name, limited)

def main(_):
    quiet = Console(file=io.StringIO())
    if kind == "finetune":
        limit(llm_forget.train.finetune, "_write")
        llm_forget.train.finetune.finetune(build(FinetuneRecipe, values, "test"), quiet)
    else:
        from llm_forget.train import unlearn
        limit(unlearn, "write_run")
        unlearn.unlearn(build(UnlearnRecipe, values, "test"), quiet)

run_entry(main, [])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unlearn", "finetune"])
def test_a_disk_that_is_full_at_the_end_is_explained(kind: str, values: dict[str, Any], tmp_path: Path) -> None:
    """A limit on file sizes fails in the same place as a full disk: in safetensors, in the middle of a file."""
    from dataclasses import asdict

    if kind == "finetune":
        values = asdict(learning(values))
    env = {**os.environ, "PYTHONPATH": str(Path(llm_forget.__path__[0]).parent)}
    command = [sys.executable, "-c", LIMITED, json.dumps(values), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "v cannot be written: File too large" in done.stderr
    assert "Free disk space and run the same command with --resume true" in done.stderr
    assert "Traceback" not in done.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["v.checkpoints"] if kind == "unlearn" else [])
