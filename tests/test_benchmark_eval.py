"""The evaluation benchmark runs both sides on the same rows, and they measure the same thing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_eval.py"


@pytest.mark.slow
def test_both_sides_agree_and_the_table_is_printed() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--limit", "3", "--sizes", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the two sides agree" in done.stdout
    rows, passes = re.match(r"(\d+) rows, (\d+) separate passes", done.stdout).groups()  # type: ignore[union-attr]
    assert int(rows) > 3 * 5
    assert int(passes) > 5 * 2
    assert re.search(r"^ratio( +\d+\.\d\d){3}$", done.stdout, re.M)
    assert re.search(r"^ +1\d rows: +\d+\.\d\d ms a row", done.stdout, re.M)
    missing = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "give --model and --data-dir, or --tiny" in missing.stderr
