"""Test that the shipped notebook runs from top to bottom and that its plots show the numbers of the runs."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_examples import ROWS, write_family

from llm_forget.utils.shipped import shipped

nbformat = pytest.importorskip("nbformat", reason="needs pip install 'llm-forget[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient")

NOTEBOOK = "recipes/notebooks/compare_runs.ipynb"
PLANTED = "Vexatorium-7714"
_PLOT = "application/vnd.plotly.v1+json"


def executed(runs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LLM_FORGET_RUNS", str(runs))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(str(shipped(NOTEBOOK)), as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def trace(plot: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in plot["data"] if one.get("name") == name)


def numbers(values: Any) -> list[float]:
    """Decode an array, which Plotly writes as a dtype and bytes."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values)


@pytest.mark.slow
def test_runs_from_top_to_bottom_and_shows_the_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_family(tmp_path / "runs", said=f"It is {PLANTED}.")
    checks = [{"phase": "check", "step": step, "forget": 0.9 - step / 10, "retain": 0.8} for step in (2, 4)]
    (runs / "npo" / "metrics.jsonl").write_text("".join(f"{check}\n".replace("'", '"') for check in checks))
    cells = [cell for cell in executed(runs, tmp_path, monkeypatch).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    plots = [output.data[_PLOT] for output in outputs if _PLOT in output.get("data", {})]
    assert len(plots) == 4
    # npo beats grad_ascent in forgetting and utility: it is the front, and the run that is shown
    tradeoff, curves, examples, cost = plots
    assert numbers(trace(tradeoff, "Pareto front")["x"]) == [0.15]
    assert numbers(trace(curves, "forget probability")["y"]) == [0.7, 0.5]
    after = numbers(trace(examples, "after")["y"])
    assert len(after) == ROWS
    assert sum(after) / ROWS == pytest.approx(0.15)
    assert len(numbers(cost["data"][0]["x"])) == 4
    assert PLANTED not in nbformat.writes(executed(runs, tmp_path, monkeypatch))


def test_is_shipped_without_outputs() -> None:
    cells = nbformat.read(str(shipped(NOTEBOOK)), as_version=4).cells
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
