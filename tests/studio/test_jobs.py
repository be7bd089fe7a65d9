"""Jobs are processes of their own: one at a time, in order, stopped and told apart by files alone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_forget.errors import UserError
from llm_forget.studio.jobs import DONE, FAILED, OVER, STOPPED, Jobs, command_line
from llm_forget.studio.place import Place

QUICK = ("recipes", "list")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Place.at(tmp_path))


def wait_for(true: Callable[[], object], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_jobs_run_one_after_the_other_and_another_reader_sees_the_same(jobs: Jobs) -> None:
    made = [jobs.start(QUICK), jobs.start(("recipes", "copy", "no/such/recipe.yaml")), jobs.start(QUICK)]
    jobs.stop(made[2].id)
    wait_for(lambda: all(one.state in OVER for one in jobs.list()))
    assert [one.state for one in Jobs(Place(jobs.place.root)).list()] == [STOPPED, FAILED, DONE]
    first, second = (json.loads((jobs.folder / one.id / "state.json").read_text()) for one in made[:2])
    assert second["began"] >= first["ended"] - 0.01
    assert "recipes/demo/npo.yaml" in "\n".join(jobs.get(made[0].id).said(200))
    assert "does not exist" in "\n".join(jobs.get(made[1].id).said())
    assert command_line(made[1].argv) == "llm-forget recipes copy no/such/recipe.yaml"
    assert oct((jobs.folder / made[0].id).stat().st_mode)[-3:] == "700"


def test_a_job_whose_processes_were_killed_can_go_on(jobs: Jobs) -> None:
    first = jobs.start(QUICK, "runs/x")
    with pytest.raises(UserError, match="already writes runs/x"):
        jobs.start(QUICK, "runs/x")
    state = jobs.folder / first.id / "state.json"
    wait_for(lambda: state.is_file() and "began" in state.read_text())
    os.killpg(json.loads(state.read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: jobs.get(first.id).state == STOPPED)
    again = jobs.again(first.id)
    wait_for(lambda: jobs.get(again.id).state == DONE)
    with pytest.raises(UserError, match="nothing to stop"):
        jobs.stop(again.id)
    for wrong in ("", "../0001", "0001/../0001", "9999", "1"):
        with pytest.raises(UserError, match="no such job"):
            jobs.get(wrong)
