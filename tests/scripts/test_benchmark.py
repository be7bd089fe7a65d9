"""Test the benchmark on a tiny model: it runs, the losses are equal, and a difference in losses is detected."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import benchmark
import pytest


def run_here(task: str, spec: dict[str, Any], processes: int = 1, threads: int | None = None) -> Any:
    """Replace ``benchmark.in_a_process`` without a process, since most of its time is spent on imports."""
    return json.loads(json.dumps(benchmark.TASKS[task](json.loads(json.dumps(spec)))))


@pytest.mark.slow
def test_a_quick_run_of_all_parts_but_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of our trainer on all weights equal those of the plain implementation to 1e-3."""
    out = tmp_path / "benchmark.json"
    chosen = ["--quick", "--repeats", "1", "--methods", "npo", "--rates", "1e-5"]
    parts = [part for part in benchmark.PARTS if part != "processes"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *chosen, "--out", str(out), "--parts", *parts])
    monkeypatch.setattr(benchmark, "in_a_process", run_here)
    benchmark.main()
    found = json.loads(out.read_text())
    assert found["machine"]["torch"]
    results, ratios = (found["steps"]["npo"][name] for name in ("results", "ratios"))
    assert ratios["largest_loss_gap"] <= 1e-3
    for side in benchmark.SIDES:
        (run,) = results[side]
        assert run["steps"] == len(run["losses"]) == 3
        assert 0 < run["seconds_per_step"] < run["seconds_per_run"]
        assert run["peak_bytes"] > 1e8
    assert len(set(results["plain"][0]["losses"])) > 1, "it trained"
    # A plain step also runs the reference, and computes logits at every position.
    profiles = {side: found["profile"]["sides"][side] for side in benchmark.SIDES}
    assert 0 < profiles["full"]["operations"] < profiles["plain"]["operations"]
    assert all(profile["rate"] > 0 for profile in profiles.values())
    assert all(run["checks"] or run["steps"] < 5 for run in found["goal"].values())
    assert found["growth"]["rows"]["16"]["lean"]["steps"] == 3
    assert found["growth"]["retraining"]["seconds_per_run"] > 0


@pytest.mark.slow
def test_subprocesses_and_process_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the part ``processes``: two processes are really started; the measurements of one process run here."""
    started = benchmark.in_a_process

    def run(task: str, spec: dict[str, Any], processes: int = 1, threads: int | None = None) -> Any:
        return (started if processes > 1 else run_here)(task, spec, processes, threads)

    monkeypatch.setattr(benchmark, "in_a_process", run)
    spec = benchmark.prepare(tmp_path, None)
    found = benchmark.Bench(spec, argparse.Namespace(steps=3), tmp_path).processes()
    assert len(found) == 3
    assert {run["steps"] for run in found.values()} == {3}
    assert all(run["peak_bytes"] > 1e8 for run in found.values())


@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_process_of_a_group_prints_the_result(
    rank: str | None, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setitem(benchmark.TASKS, "measure", lambda spec: spec)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--task", "measure", "--spec", '{"steps": 3}'])
    benchmark.main()
    assert capsys.readouterr().out.splitlines() == ['{"steps": 3}'] * lines


def test_missing_material_is_an_error_that_asks_for_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLM_FORGET_MATERIAL", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "give --material DIR or set $LLM_FORGET_MATERIAL" in capsys.readouterr().err


def test_ratios_are_computed_per_repetition() -> None:
    def run(seconds: float, loss: float) -> dict[str, Any]:
        names = ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_epoch", "seconds_per_run", "peak_bytes")
        return {**dict.fromkeys(names, seconds), "losses": [loss, 2.0]}

    found = benchmark.compare(
        {
            "plain": [run(4, 1), run(8, 1), run(2, 1)],
            "full": [run(2, 1.5)] * 3,
            "lean": [run(1, 9)] * 3,
            "top": [run(1, 9)] * 3,
            "small": [run(2, 9)] * 3,
            "pieces": [run(2, 9)] * 3,
        }
    )
    assert found["lean"]["seconds_per_step"] == {"median": 0.25, "least": 0.125, "most": 0.5}
    assert found["largest_loss_gap"] == 0.5
