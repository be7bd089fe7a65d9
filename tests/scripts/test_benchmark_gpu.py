"""Test the benchmark of large models on a tiny one: every side is measured, and what does not fit or is late is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import benchmark
import benchmark_gpu
import pytest
from test_benchmark import run_here

from llm_forget.errors import RecipeError
from llm_forget.memory.gpus import Gpu


@pytest.mark.slow
def test_every_side_of_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "in_a_process", run_here)
    out = tmp_path / "gpu.json"
    benchmark_gpu.main(["--quick", "--tokens", "24", "--sides", "plain", "lean", "top", "--out", str(out)])
    found = json.loads(out.read_text())["lines"]
    assert [line["side"] for line in found] == ["plain", "lean", "top"]
    assert all(line["seconds_per_step"] > 0 < line["share"] < 1 for line in found)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_gpu, "planned", lambda *_: (90e9, 1e12))
    line = benchmark_gpu.measure("8b", "plain", Gpu("H100", 80e9, 989e12), {}, 256)
    assert line["left_out"] == "needs 90 GB"


def test_what_is_late_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("it is late")

    monkeypatch.setattr(benchmark_gpu, "measure", fail)
    benchmark_gpu.main(["--quick", "--limit", "-1", "--sides", "lean"])
    assert "left out: -1 seconds are over" in capsys.readouterr().out


def test_a_gpu_must_be_named() -> None:
    with pytest.raises(RecipeError, match="give --gpu, for example H100, or --quick"):
        benchmark_gpu.main([])
