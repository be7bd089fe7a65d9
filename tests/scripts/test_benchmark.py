"""The benchmark on a tiny model: it runs, the losses are equal, and a gap between losses would be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark
import pytest


@pytest.mark.slow
def test_a_quick_run_of_all_parts(tmp_path: Path) -> None:
    """Every part once: losses of our trainer on all weights equal those of the plain implementation to 1e-3."""
    out = tmp_path / "benchmark.json"
    chosen = ["--quick", "--repeats", "1", "--methods", "npo", "--rates", "1e-5"]
    command = [sys.executable, benchmark.__file__, *chosen, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
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
    # A plain step forwards the reference too, and reads the head at every position.
    operations = {side: found["profile"]["sides"][side]["operations"] for side in benchmark.SIDES}
    assert 0 < operations["full"] < operations["plain"]
    assert all(run["checks"] or run["steps"] < 5 for run in found["goal"].values())
    assert found["growth"]["rows"]["16"]["lean"]["steps"] == 3
    assert found["growth"]["retraining"]["seconds_per_run"] > 0
    assert {run["steps"] for run in found["processes"].values()} == {3}


def test_without_material_the_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLM_FORGET_MATERIAL", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "give --material DIR or set $LLM_FORGET_MATERIAL" in capsys.readouterr().err


def test_ratios_are_taken_turn_by_turn() -> None:
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
