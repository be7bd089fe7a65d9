"""Test how commands end on a signal: status, one line, no temporary files, and no process that outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llm_forget

ENV = {**os.environ, "PYTHONPATH": str(Path(llm_forget.__path__[0]).parent)}
STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
COMMAND = """
import sys, time, pathlib
from llm_forget.cli.entry import run_entry
from llm_forget.utils.files import new_folder
from llm_forget.utils.output import writing

def main(argv):
    with writing(argv[0]), new_folder(pathlib.Path(argv[0])) as folder:
        (folder / "half").write_text("x")
        print("ready", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(float(argv[1]))

run_entry(main, sys.argv[1:])
"""


def started(place: Path, *, cleaning: float = 0.0, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, str(place), str(cleaning)]
    process = subprocess.Popen(
        command, env=ENV | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", STATUS)
def test_a_command_ends_with_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told.strip()) == (STATUS[name], f"interrupted: received {name}")
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_break_off_the_cleaning_up(tmp_path: Path) -> None:
    """A launcher that ends after Ctrl-C is followed by a SIGTERM."""
    process = started(tmp_path / "run", cleaning=0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told.strip()) == (130, "interrupted: received SIGINT")
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As with nohup, and for the background jobs of a shell."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


LAUNCHER = "import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[2:]])\n"  # argv[1] is its name


@pytest.mark.parametrize("launcher", ["accelerate", "a shell"])
def test_a_process_ends_with_its_launcher_but_not_with_a_shell(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAUNCHER, launcher, "-c", COMMAND, str(tmp_path / "run"), "0"]
    env = ENV | {"ACCELERATE_MIXED_PRECISION": "no"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.kill()
        process.wait()
        if launcher == "accelerate":
            assert process.stderr.read().strip() == "interrupted: received SIGTERM"
            assert not list(tmp_path.iterdir())
        else:
            time.sleep(0.5)
            assert list(tmp_path.iterdir()), "it goes on"
            os.kill(child, signal.SIGTERM)
            assert process.stderr.read()


def test_an_interrupt_is_one_line_in_every_script(tmp_path: Path) -> None:
    for error, status, words in (("KeyboardInterrupt", 130, "interrupted"), ("ValueError('row')", 3, "error: ValueError in"),
                                 ("OSError(28, 'x')", 2, "No space left on device")):  # fmt: skip
        script = f"from llm_forget.cli.entry import run_entry\ndef main(_):\n    raise {error}\nrun_entry(main, [])\n"
        done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "row" not in done.stderr
