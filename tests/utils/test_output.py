"""Test folders that a command writes: one writer, only our own files removed, links followed, full disks explained."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

import llm_forget
import llm_forget.utils.lock
from llm_forget.errors import UserError
from llm_forget.utils.disk import explained_if_full, full_disk
from llm_forget.utils.files import HOST, new_folder, write_text
from llm_forget.utils.lock import locked
from llm_forget.utils.output import check_inputs_outside, writing
from llm_forget.utils.written import foreign_files, remove_written, what_is_replaced

ENV = {**os.environ, "PYTHONPATH": str(Path(llm_forget.__path__[0]).parent)}
HOLD = (
    "import sys, time, pathlib\nfrom llm_forget.utils import lock\nsys.argv[2:] and setattr(lock, 'fcntl', None)\n"
    "with lock.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture(params=["flock", "without flock"])
def holder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path / "run"``."""
    more = []
    if request.param != "flock":
        monkeypatch.setattr(llm_forget.utils.lock, "fcntl", None)
        more = ["no"]
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), *more]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_writer_is_refused_in_words(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    words = rf"output_dir: .*run is being written by process {holder.pid} on {HOST}, since 20.*wait until it ends"
    with pytest.raises(UserError, match=words), writing(tmp_path / "run"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="is being written"), writing(tmp_path / "link"):
        pass
    with writing(tmp_path / "other"):
        pass


def test_a_lock_of_a_killed_process_is_free(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert list(tmp_path.glob(".run.*")), "a killed process leaves its file"
    with writing(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flock", [True, False])
def test_a_lock_is_for_one_thread_and_its_nested_calls(
    flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:
        monkeypatch.setattr(llm_forget.utils.lock, "fcntl", None)
    said: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path / "run"):
                said.append("both")
        except UserError as error:
            said.append(str(error))

    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in said[0]
    second()
    assert said[1] == "both"
    assert not list(tmp_path.iterdir())


def test_evaluations_share_a_folder_but_not_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with writing(tmp_path / "run", shared=True):
        answers: list[str] = []

        def other(shared: bool) -> None:
            try:
                with writing(tmp_path / "run", shared=shared):
                    answers.append("in")
            except UserError:
                answers.append("out")

        for shared in (True, False, True):
            thread = threading.Thread(target=other, args=(shared,))
            thread.start()
            thread.join()
    assert answers == ["in", "out", "in"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_twenty_writers_at_once_take_turns(tmp_path: Path) -> None:
    """Whoever opened the file before the last holder removed it must not count as the holder."""
    inside, worst, done = [0], [0], [0]

    def work() -> None:
        for _ in range(30):
            try:
                with locked(tmp_path / "run"):
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                    time.sleep(0.0005)
                    done[0] += 1
                    inside[0] -= 1
            except UserError:
                time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [1]
    assert done[0] > 20


@pytest.mark.parametrize("place", ["file/below", "/proc/here", "/proc/1/x"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    words = r"output_dir: .* cannot be written: .*give another folder"
    with pytest.raises(UserError, match=words), writing(tmp_path / place):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with writing(tmp_path / "a" / "b" / "run"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())


RUN = [
    "recipe.yaml", "env.json", "metrics.jsonl", "result.json", "report.html", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors", "adapter/README.md", "model/model-00001-of-00002.safetensors", "model/config.json",
    "model/model.safetensors.index.json", "model/tokenizer.json", "model/chat_template.jinja", "model/vocab.txt",
    "logs/tensorboard/events.out.tfevents.1", "logs/tensorboard/1/events.out.tfevents.2", "logs/wandb/run-1/files/a.txt",
    "logs/mlflow/mlflow.db", "eval/demo.json", "eval/demo.parquet", "eval/cache/scores/ab/abc.safetensors",
    ".recipe.yaml.4711-0123abcd", f"eval/.demo.json.{HOST}-4711-0123abcd.new",
]  # fmt: skip
FOREIGN = [
    "notes.txt", "thesis/chapter.tex", "adapter/notes.md", "eval/plot.png", "eval/cache/mine.txt", "logs/mine.log",
    "logs/tensorboard/mine.txt", "model/results.xlsx", "model/sub/config.json", ".hidden",
]  # fmt: skip


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old " + name)


def test_a_replaced_run_keeps_what_no_run_wrote(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(run, RUN + FOREIGN)
    (run / "away").symlink_to(tmp_path)
    removed, kept = what_is_replaced(run)
    assert set(removed) >= {"adapter", "eval", "result.json"}
    assert kept == sorted([*FOREIGN, "away"])
    with new_folder(run) as new:
        (new / "result.json").write_text("new")
        (new / "notes.txt").write_text("new")
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if not path.is_dir()}
    assert left == {"result.json", *FOREIGN}
    assert (run / "away").is_symlink()
    assert (run / "result.json").read_text() == "new"
    assert (run / "adapter/notes.md").read_text() == "old adapter/notes.md"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_and_a_model_keep_what_no_command_wrote(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["adapter_config.json", "adapter_model.safetensors", "README.md", "thesis.txt", "config.json"])
    fill(tmp_path / "m", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "LICENSE"])
    assert {path.name for path in foreign_files(tmp_path / "a")} == {"thesis.txt", "config.json"}
    assert {path.name for path in foreign_files(tmp_path / "m")} == {"LICENSE"}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "later")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, real in (("link", "run"), ("dangling", "later")):
        with writing(tmp_path / name), new_folder(tmp_path / name) as new:
            (new / "x").write_text("x")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / real / "x").is_file()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["later", "run"]
    with pytest.raises(UserError, match="leads to itself"), writing(tmp_path / "circle"):
        pass


def write_while(run: Path, appears: Callable[[], None]) -> None:
    with new_folder(run) as new:
        (new / "x").write_text("mine")
        appears()


def test_a_place_that_cannot_be_replaced_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume may be mounted exactly there, which no rename replaces; a shell in the folder would be left nowhere."""
    (tmp_path / "run" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "sub")
    places = {
        "/": "root",
        "/..": "root",
        "/proc": "mount point",
        ".": "current",
        "..": "current",
        "../../run": "current",
    }
    for place, words in places.items():
        with pytest.raises(UserError, match=words), writing(place):
            pass
    with writing("../sub/../other"), new_folder(Path("../sub/../other")) as new:
        (new / "x").write_text("x")
    assert (tmp_path / "run" / "other" / "x").is_file()


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Also if the folder is only written long after the start of the command."""
    run = tmp_path / "run"

    def late() -> None:
        with writing(run):
            fill(run, ["result.json"])
            write_while(run, lambda: None)

    def swapped() -> None:
        run.rename(tmp_path / "moved")
        fill(run, ["result.json"])

    with pytest.raises(UserError, match=r"run was written by another process meanwhile.*is in .*run-2"):
        late()
    assert (run / "result.json").read_text() == "old result.json"
    assert (tmp_path / "run-2" / "x").read_text() == "mine"
    with pytest.raises(UserError, match=r"run-3"):
        write_while(run, swapped)
    with new_folder(run, same_if_present=True):
        run.rename(tmp_path / "moved again")
        fill(run, ["y"])
    assert (run / "y").is_file()
    assert not list(tmp_path.glob(".*"))
    with writing(run):
        for _ in range(2):
            write_while(run, lambda: None)


def test_only_matching_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    fill(folder, ["a/b/x.1", "a/b/c/x.2", "a/keep", "d/x.3"])
    assert remove_written(folder, ("a/**/x.*", "d/x.*"))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"a", "a/keep"}
    assert not remove_written(folder, ("a/keep",))
    assert not folder.exists()
    (tmp_path / "real").mkdir()
    fill(tmp_path / "real", ["x"])
    folder.symlink_to(tmp_path / "real")
    assert not remove_written(folder, ("x",))
    assert folder.is_symlink()


def test_a_folder_of_inputs_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "run", ["model/config.json"])
    with pytest.raises(UserError, match=r"contains model\.name .*and would replace it"):
        check_inputs_outside(tmp_path / "run", [("data", None), ("model.name", str(tmp_path / "run" / "model"))])
    check_inputs_outside(tmp_path / "run", [("model.name", "owner/name"), ("data", str(tmp_path))])


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    SafetensorError(
        'Error while serializing: IoError(Os { code: 122, kind: QuotaExceeded, message: "Disk quota exceeded" })'
    ),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_explained(error: Exception, tmp_path: Path) -> None:
    assert full_disk(error) is not None
    with (
        pytest.raises(UserError, match=r"run cannot be written: .*unchanged\. Free disk space"),
        writing(tmp_path / "run"),
    ):
        raise error


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "no file"), SafetensorError("header too large"), ValueError("x")):
        assert full_disk(error) is None
        with pytest.raises(type(error)), explained_if_full(tmp_path):
            raise error


def test_files_are_tidied_by_the_next_writer(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    (tmp_path / f".page.html.{HOST}-{process.pid}-00000000.new").write_text("half")
    write_text(tmp_path / "page.html", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(UserError, match=r"cannot be written"):
        write_text(Path("/proc/x/y"), "text")
