"""Test that the shipped notebooks run from top to bottom, and show and write what they should."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_examples import ROWS, write_family

from llm_forget.demo.splits import people, rows
from llm_forget.utils.shipped import shipped

nbformat = pytest.importorskip("nbformat", reason="needs pip install 'llm-forget[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient")

NOTEBOOK = "recipes/notebooks/compare_runs.ipynb"
FIND = "recipes/notebooks/find_rows.ipynb"
PLANTED = "Vexatorium-7714"
_PLOT = "application/vnd.plotly.v1+json"


def executed(runs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = NOTEBOOK) -> Any:
    monkeypatch.setenv("LLM_FORGET_RUNS", str(runs))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(str(shipped(name)), as_version=4)
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


@pytest.mark.slow
def test_from_a_bad_answer_to_the_files_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidfuzz", reason="needs pip install 'llm-forget[find]'")
    folk = people(8, 3)
    data = [{name: row[name] for name in ("question", "answer")} for person in folk for row in rows(person, 3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    monkeypatch.setenv("LLM_FORGET_ANSWER", data[12]["answer"])
    cells = [cell for cell in executed(tmp_path, tmp_path, monkeypatch, FIND).cells if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    forget = (tmp_path / "my_data" / "forget.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in forget] == data[12:24]
    assert (tmp_path / "my_data" / "search.json").is_file()


@pytest.mark.parametrize("name", [NOTEBOOK, FIND])
def test_is_shipped_without_outputs(name: str) -> None:
    cells = nbformat.read(str(shipped(name)), as_version=4).cells
    assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
