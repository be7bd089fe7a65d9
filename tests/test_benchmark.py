"""The benchmark on a tiny model: it runs, the losses are equal, and a gap between losses would be seen."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_quick_run_of_all_sides(tmp_path: Path, benchmark: Any) -> None:
    """Every side once: losses of our trainer on all weights equal those of the plain implementation to 1e-3."""
    out = tmp_path / "benchmark.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--repeats", "1", "--out", str(out), "--methods"]
    methods = ["npo"]
    done = subprocess.run([*command, *methods], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["torch"]
    for method in methods:
        results, ratios = (found["methods"][method][name] for name in ("results", "ratios"))
        assert ratios["largest_loss_gap"] <= 1e-3
        for side in ("plain", "full", "lean"):
            (run,) = results[side]
            assert run["steps"] == len(run["losses"]) == 4
            assert 0 < run["seconds_per_step"] < run["seconds_per_run"]
            assert run["peak_bytes"] > 1e8
        assert f"{method}" in done.stdout
    assert len(set(results["plain"][0]["losses"])) > 1, "it trained"


def test_ratios_are_taken_turn_by_turn(benchmark: Any) -> None:
    def run(seconds: float, loss: float) -> dict[str, Any]:
        names = ("seconds_per_step", "cpu_seconds_per_step", "seconds_per_epoch", "seconds_per_run", "peak_bytes")
        return {**dict.fromkeys(names, seconds), "losses": [loss, 2.0]}

    found = benchmark.compare(
        {"plain": [run(4, 1), run(8, 1), run(2, 1)], "full": [run(2, 1.5)] * 3, "lean": [run(1, 9)] * 3}
    )
    assert found["lean"]["seconds_per_step"] == {"median": 0.25, "least": 0.125, "most": 0.5}
    assert found["largest_loss_gap"] == 0.5
