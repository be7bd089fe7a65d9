"""Test that the demo's steps run when what they need is there, two at once, and that a failed one ends the demo."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from llm_forget.demo import steps as module
from llm_forget.demo.steps import Step, at_once, run_steps
from llm_forget.errors import UserError
from llm_forget.memory.machine import Machine


def copying(name: str, makes: Path, *needs: Path, recipe: str = "recipes/demo/npo.yaml") -> Step:
    """A step that takes a moment: it copies a recipe."""
    return Step(name, ("recipes", "copy", recipe, str(makes)), makes, needs)


@pytest.fixture
def console() -> Console:
    return Console(width=200, record=True)


@pytest.mark.slow
def test_a_step_begins_when_all_that_it_needs_is_made_and_no_more_than_most_run(
    tmp_path: Path, console: Console
) -> None:
    first, second, third = (tmp_path / f"{name}.yaml" for name in ("first", "second", "third"))
    steps = [copying("third", third, first, second), copying("first", first), copying("second", second)]
    run_steps(steps, console, most=2, threads=1)
    assert third.read_text() == first.read_text()
    told = [line for line in console.export_text().splitlines() if line.endswith("begins") or "done in" in line]
    assert [line.partition(":")[0] for line in told[:2]] == ["first", "second"]
    assert all(line.endswith("begins") for line in told[:2])  # both ran before one was done
    assert told[-2] == "third: begins"
    assert told[-1].startswith("third: done in")


@pytest.mark.slow
def test_one_at_a_time(tmp_path: Path, console: Console) -> None:
    run_steps([copying(name, tmp_path / f"{name}.yaml") for name in ("a", "b")], console, most=1)
    told = [
        line.split()[0] + line.split()[1]
        for line in console.export_text().splitlines()
        if "begins" in line or "done" in line
    ]
    assert told == ["a:begins", "a:done", "b:begins", "b:done"]


@pytest.mark.slow
def test_a_step_that_leaves_an_old_file_as_it_was_has_failed_and_its_last_lines_are_shown(
    tmp_path: Path, console: Console
) -> None:
    made = tmp_path / "made.yaml"
    made.write_text("of an earlier demo")
    with pytest.raises(
        UserError, match=r"broken ended with status 2 and did not write .*made.yaml:(.|\n)*nothing.yaml"
    ):
        run_steps([copying("broken", made, recipe="recipes/nothing.yaml")], console, most=2)
    assert made.read_text() == "of an earlier demo"


def test_a_step_whose_needs_nobody_makes_is_an_error(tmp_path: Path, console: Console) -> None:
    with pytest.raises(UserError, match=r"late cannot begin: nothing makes .*missing.yaml"):
        run_steps([copying("late", tmp_path / "made.yaml", tmp_path / "missing.yaml")], console, most=2)


def test_processes_end_with_the_demo(tmp_path: Path) -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True)

    def interrupted() -> None:
        with module._ended_with_us() as running:
            running.append(module._Running(copying("long", tmp_path / "made"), process, None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert process.poll() is not None
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("machine", "count", "wanted"),
    [
        (Machine("CPU", False, 20e9), 4, 2),
        (Machine("CPU", False, 9e9), 4, 1),  # no memory for two
        (Machine("CPU", False, 20e9), 1, 1),
        (Machine("GPU", True, 80e9), 4, 1),
    ],
)
def test_two_steps_run_at_once_where_cores_and_memory_allow(
    machine: Machine, count: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: count)
    assert at_once(machine, 5e9) == wanted
