"""A run folder whose parts do not belong together is said so, by every reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command
from extras import needs
from run_examples import write_family, write_run
from safetensors.numpy import save_file

from llm_forget.evaluation.results import write_results
from llm_forget.report.comparison import load_comparison
from llm_forget.runs import load_run
from llm_forget.runs.load import find_runs
from llm_forget.utils.files import folder_digest, write_record

Raw = dict[str, Any]


def rewrite(file: Path, change: Callable[[Raw], Any]) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    write_record(file, raw)


def write_weights(folder: Path, value: float) -> str:
    folder.mkdir(exist_ok=True)
    save_file({"x": np.full(3, value)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 1}')
    return str(folder_digest(folder))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a family in which npo has an adapter, whose digest its results state."""
    root = write_family(tmp_path / "runs")
    for number, run in enumerate(sorted(root.iterdir())):
        digest = write_weights(run / "adapter", number) if run.name == "npo" else None
        model = {"weights": f"{run.name:0<64}", "adapter": digest, "base": None}
        rewrite(run / "eval" / "tiny.json", lambda raw, model=model: raw.update(model=model))
        rewrite(run / "result.json", lambda raw, digest=digest: raw.update(adapter_digest=digest))
    return root


def notes(root: Path) -> list[str]:
    """Return what all readers say, which must be the same."""
    found = load_comparison([root]).notes
    compared = command("compare", root, "--json")
    assert json.loads(compared.out)["notes"] == found
    assert compared.err.splitlines() == [f"note {one}" for one in found]
    verdict = " ".join(json.loads(compared.out)["verdicts"]["npo"])
    of_npo = [one.removeprefix("npo: ") for one in found if one.startswith("npo: ")]
    assert all(one in verdict for one in of_npo)
    reported = command("report", root / "npo", "--to", root.parent / "page.html", "--json")
    assert all(f"npo: {one}" in json.loads(reported.out)["notes"] for one in of_npo)
    return found


def test_a_run_whose_parts_belong_together_has_no_notes(runs: Path) -> None:
    assert notes(runs) == []


@needs("plotly")
def test_an_adapter_replaced_after_the_evaluation_is_said(runs: Path) -> None:
    stated = str(folder_digest(runs / "npo" / "adapter"))
    found = write_weights(runs / "npo" / "adapter", 9.0)
    assert notes(runs) == [
        f"npo: adapter/ is not the one that the run wrote (stated {stated[:12]}, found {found[:12]})",
        f"npo: tiny.json measured another adapter than the one in adapter/ ({stated[:12]}, not {found[:12]})",
    ]


@needs("plotly")
def test_a_changed_scale_of_the_adapter_is_said(runs: Path) -> None:
    (runs / "npo" / "adapter" / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 64}')
    assert "adapter/ is not the one" in notes(runs)[0]


@needs("plotly")
def test_results_of_another_model_are_said(runs: Path) -> None:
    file = runs / "npo" / "eval" / "tiny.json"
    rewrite(file, lambda raw: raw["model"].update(adapter=None, base="c" * 64))
    assert notes(runs) == ["npo: tiny.json measured a model without the adapter in adapter/"]
    rewrite(file, lambda raw: raw.pop("model"))
    assert notes(runs) == ["npo: tiny.json does not say which model it measured"]


@needs("plotly")
def test_an_edited_number_is_said_by_every_reader(runs: Path) -> None:
    file = runs / "npo" / "eval" / "tiny.json"
    raw = json.loads(file.read_text())
    raw["sets"]["forget"]["metrics"]["probability"]["value"] = 0.0001
    file.write_text(json.dumps(raw))
    assert notes(runs) == [
        "npo: tiny.json was edited after it was written",
        "npo: tiny.json: forget.probability is stated as 0.0001, but the scores of its examples give 0.15",
    ]


@needs("plotly")
def test_an_edited_record_of_the_run_is_said(runs: Path) -> None:
    file = runs / "npo" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_digest": "d" * 64}))
    assert notes(runs) == ["npo: result.json was edited after it was written"]


def test_sets_that_differ_are_said_and_have_no_change(runs: Path) -> None:
    rewrite(runs / "npo" / "eval" / "tiny.json", lambda raw: raw["sets"]["retain"].update(digest="another"))
    (note,) = load_comparison([runs]).notes
    assert note.startswith("the retain set has other examples in npo than in ")
    changes = load_comparison([runs]).changes()
    assert changes is not None
    assert np.isnan(float(changes.loc[("npo", "retain.probability"), "change"]))
    assert float(changes.loc[("npo", "forget.probability"), "change"]) == pytest.approx(-0.75)


def test_one_model_measured_twice_is_said(runs: Path) -> None:
    rewrite(runs / "npo" / "eval" / "tiny.json", lambda raw: raw["model"].update(weights="target".ljust(64, "0")))
    assert load_comparison([runs]).notes == [
        "npo, target are results of the same weights: was one of them evaluated without its adapter?"
    ]


def _keep(root: Path, *names: str) -> list[Path]:
    return [root / name for name in names]


@needs("plotly")
@pytest.mark.parametrize(
    "names", [["target", "oracle"], ["target"], ["npo"], ["npo", "grad_ascent"], ["oracle", "npo"]]
)
def test_any_set_of_runs_can_be_compared(runs: Path, names: list[str]) -> None:
    done = command("compare", *_keep(runs, *names), "--to", runs.parent / "page.html")
    assert (done.status, done.err) == (0, "")
    assert all(name in done.out for name in names)
    assert {one["run"] for one in json.loads(command("compare", *_keep(runs, *names), "--json").out)["runs"]} == {
        *names
    }


@needs("plotly")
def test_folders_with_results_only_and_without_results(runs: Path) -> None:
    for name in ("npo", "target"):
        (runs / name / "result.json").unlink()
        (runs / name / "recipe.yaml").unlink()
    shutil.rmtree(runs / "grad_ascent" / "eval")
    done = command("compare", runs, "--to", runs.parent / "page.html")
    assert done.status == 0, done.err
    assert command("report", runs / "npo", "--to", runs.parent / "page.html").status == 0
    assert command("report", runs / "grad_ascent", "--to", runs.parent / "page.html").status == 0


def test_no_run_is_a_message_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "result.json").write_text("{")
    for more in ([], ["--json"], ["--table-only"]):
        done = command("compare", tmp_path / "runs", *more)
        assert done.status == 2
        assert "no run was found" in done.err
        assert "half" in done.err


@needs("plotly")
def test_runs_of_several_suites(runs: Path) -> None:
    for number, name in enumerate(("npo", "oracle")):
        file = runs / name / "eval" / "tiny.json"
        results = load_run(runs / name).evaluations["tiny"].with_examples()
        write_results({**results, "suite": f"other{number}"}, runs / name / "eval" / f"other{number}.json")
        if number:
            file.unlink()
    done = command("compare", runs, "--to", runs.parent / "page.html")
    assert done.status == 0, done.err


@needs("plotly")
def test_runs_with_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "more" / "npo", forget=0.4, retain=0.8, method="npo")
    found, _ = find_runs([runs / "npo", other])
    assert [run.name for run in found] == ["runs/npo", "more/npo"]
    assert command("compare", runs / "npo", other, "--to", tmp_path / "page.html").status == 0


def test_what_a_killed_process_left_is_tidied_by_readers(runs: Path) -> None:
    from llm_forget.utils.files import HOST

    ending = f"{HOST}-{2**22 + 1}-00000000"
    left = [runs / "npo" / f".report.html.{ending}.new", runs / "npo" / "eval" / f".tiny.json.{ending}.new"]
    for file in left:
        file.write_text("half")
    (runs / "npo").rename(runs / f".npo.{ending}.old")  # killed between the two renames of an overwrite
    (runs / f".new.{ending}.new").mkdir()
    assert command("compare", runs, "--json").status == 0
    assert load_run(runs / "npo").name == "npo"
    assert sorted(one.name for one in runs.iterdir()) == ["grad_ascent", "npo", "oracle", "target"]
    assert not any(file.exists() for file in left)


ODD_NAMES = [
    "[/nothing]",
    "[red]x[/red]",
    "\x1b[31mred",
    "a\u202eb",
    "line\nbreak",
    os.fsdecode(b"caf\xe9"),
    ":warning:",
]


@needs("plotly")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_folders_are_shown_as_they_are(runs: Path, name: str) -> None:
    from llm_forget.utils.terminal import clean

    (runs / name).parent.mkdir(parents=True, exist_ok=True)  # "[/nothing]" is a folder in a folder
    (runs / "npo").rename(runs / name)
    page = runs.parent / "page.html"
    done = command("compare", runs, "--to", page)
    assert done.status == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert clean(name, lines=False) in done.out
    assert "\x1b" not in page.read_text()
    assert command("compare", runs, "--json").status == 0
    assert command("report", runs / name, "--to", page).status == 0
