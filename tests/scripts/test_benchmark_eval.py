"""Test that the evaluation benchmark runs both sides on the same rows and that their results agree."""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import os
import re
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_eval.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_eval", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_both_sides_agree_and_the_table_is_printed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs in this process, which is faster; the next test starts a subprocess."""

    def here(side: str, options: argparse.Namespace, rows: int = 0) -> dict:
        return script._side(argparse.Namespace(**{**vars(options), "side": side, "rows": rows}))

    monkeypatch.setattr(script, "_run", here)
    assert script.main(["--tiny", "--limit", "3", "--sizes", "12"]) == 0
    shown = capsys.readouterr().out
    assert "the two sides agree" in shown
    rows, passes = re.match(r"(\d+) rows, (\d+) separate passes", shown).groups()  # type: ignore[union-attr]
    assert int(rows) > 3 * 5
    assert int(passes) > 5 * 2
    assert re.search(r"^ratio( +\d+\.\d\d){3}$", shown, re.M)
    assert re.search(r"^ +1\d rows: +\d+\.\d\d ms per row", shown, re.M)

    wrong = {"metrics": {"forget": {"probability": 0.9}}}
    assert not script._agree({"metrics": {"forget": {"probability": 0.1}}}, wrong)
    assert not script._agree({"metrics": {}}, {"metrics": {}}), "nothing compared is no agreement"


@pytest.mark.slow
def test_each_side_has_its_own_process_and_peak(script: ModuleType, tmp_path: Path) -> None:
    options = script._options().parse_args(["--tiny", "--limit", "2", "--data-dir", script._make_data(tmp_path)])
    found = script._run("growth", options, rows=6)
    assert found["rows"] >= 6
    assert found["peak_mb"] >= found["before_mb"] > 50
    assert found["wall"] > 0


def _come_and_go(megabytes: int) -> None:
    """Allocate and free fresh pages; an array could reuse memory freed by earlier tests and not raise the peak."""
    with mmap.mmap(-1, megabytes << 20) as pages:
        for place in range(0, len(pages), mmap.PAGESIZE):
            pages[place] = 1


def test_the_peak_covers_only_the_time_since_the_start(script: ModuleType) -> None:
    """64 MB allocated before do not count; 32 MB allocated and freed do."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process begin its peak anew")
    _come_and_go(64)
    before = script._start_peak()
    _come_and_go(32)
    assert 28 <= script._peak_mb() - before <= 48


def test_missing_model_and_data_are_an_error(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([])
    assert "give --model and --data-dir, or --tiny" in capsys.readouterr().err
