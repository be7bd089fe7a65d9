"""Trials outlive their workers: none is lost and none is doubled, whoever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="pip install 'llm-forget[search]'")
from search_kills import killed_search, problems

from llm_forget.trials.journal import JOURNAL
from llm_forget.trials.slots import Result, Slots, why_failed


def draw(trial: Any) -> object:
    return trial.suggest_float("x", 0, 1)


def test_no_trial_is_lost_or_doubled_when_workers_are_killed(tmp_path: Path) -> None:
    slots = killed_search(tmp_path / "search", workers=6, trials=20, kills=12, seed=3, patience=60)
    assert problems(slots) == []
    assert len(slots.study.trials) > 20, "some attempts were killed"


def test_a_slot_keeps_its_settings_through_attempts_and_an_unfinished_line_is_cut_off(tmp_path: Path) -> None:
    """A worker that dies between claim and result leaves its parameters; a torn journal line loses only itself."""
    first = Slots(tmp_path, budget=1, worker=0)
    with first.claimed(draw) as claim:
        assert claim is not None
        params = dict(claim.trial.params)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":6,"worker')
    second = Slots(tmp_path, budget=1, worker=1)
    with second.claimed(draw) as again:
        assert again is not None
        assert (again.slot, again.attempt, dict(again.trial.params)) == (claim.slot, 2, params)
        assert second.finish(again, Result(1.0, 0.5, {"retain": -0.1}, {"steps": 3}))
    assert not first.finish(claim, Result(9.0, 9.0)), "the first attempt has lost its place"
    assert second.complete
    (trial,) = second.finished().values()
    assert (trial.values, trial.constraints) == ([1.0, 0.5], {"retain": -0.1})
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())
    with second.claimed(draw) as more:
        assert more is None, "the budget is spent"


def test_a_trial_that_cannot_run_is_finished_with_its_reason(tmp_path: Path) -> None:
    slots = Slots(tmp_path, budget=1, worker=0)
    slots.enqueue([{"x": 0.25}])
    with slots.claimed(draw) as claim:
        assert claim is not None
        assert claim.trial.params == {"x": 0.25}
        slots.finish(claim, Result(failed="no such method"))
    (trial,) = slots.finished().values()
    assert why_failed(trial) == "no such method"
    assert slots.complete


def test_a_database_serves_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    slots = Slots(tmp_path / "search", url=url, budget=2, worker=0)
    for number in range(2):
        with slots.claimed(draw) as claim:
            assert claim is not None
            assert slots.finish(claim, Result(float(number), 0.0))
    assert Slots(tmp_path / "search", url=url, budget=2, worker=1).complete
