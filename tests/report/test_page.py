"""Test the page: one file, no errors or requests in headless Chromium, no text unless it was kept, everything escaped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from run_examples import write_family, write_run

from llm_forget.cli.main import app
from llm_forget.report.comparison import load_comparison
from llm_forget.report.page import write_comparison, write_report

SAID = "planted-7f3a <script>window.planted = 1</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("pages") / "runs", said=SAID)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_text_is_shown_only_if_it_was_kept_and_not_redacted(runs: Path, tmp_path: Path) -> None:
    redacted = write_report(runs / "npo", tmp_path / "redacted.html", redact=True).read_text()
    assert "planted-7f3a" not in redacted
    kept = write_report(runs / "npo", tmp_path / "kept.html").read_text()
    assert "planted-7f3a &lt;script&gt;" in kept
    assert "planted-7f3a <script>" not in kept
    page = write_comparison(load_comparison([runs]), tmp_path / "comparison.html")
    assert "planted-7f3a" not in page.read_text()


def test_names_of_folders_are_escaped(runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "<img src=x onerror=alert(1)>", forget=0.5, retain=0.5, method="npo")
    page = write_comparison(load_comparison([tmp_path / "runs"]), tmp_path / "comparison.html")
    assert "<img src=x" not in page.read_text()
    assert "&lt;img src=x" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_page_in_chromium(browser: Any, runs: Path, tmp_path: Path, kind: str, width: int) -> None:
    file = tmp_path / "page.html"
    if kind == "report":
        write_report(runs / "npo", file, redact=True)
    else:
        write_comparison(load_comparison([runs]), file)
    page = browser.new_page(viewport={"width": width, "height": 900})
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector(".js-plotly-plot .main-svg")
    visible = page.locator(".plot:visible")
    assert visible.count() > 0
    for index in range(visible.count()):
        assert visible.nth(index).locator(".main-svg").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "planted-7f3a" not in page.content()
    table = page.locator("table.sortable:visible").first
    column = f"#{table.get_attribute('id')} tbody tr"
    head = table.locator("thead th").first
    for press, direction in ((False, "ascending"), (True, "descending")):
        button = head.locator("button")
        if press:
            button.focus()
            page.keyboard.press("Enter")
        else:
            button.click()
        assert head.get_attribute("aria-sort") == direction
        names = page.locator(column).evaluate_all("rows => rows.map(row => row.cells[0].textContent.trim())")
        assert len(set(names)) > 1
        assert names == sorted(names, reverse=press)
    assert (told, asked) == ([], [file.as_uri()])
    page.close()


def test_the_command_prints_json_for_scripts(runs: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["compare", str(runs), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["baseline"] == "target"
    assert {one["run"] for one in found["runs"]} == {"grad_ascent", "npo", "oracle", "target"}
    assert not (runs / "comparison.html").exists()


def test_runs_that_state_no_seconds_have_no_costs(runs: Path, tmp_path: Path) -> None:
    """Results of other tools may state none."""
    family = shutil.copytree(runs, tmp_path / "runs")
    for path in family.glob("*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in result.items() if name != "seconds"}))
    write_comparison(load_comparison(sorted(family.iterdir())), tmp_path / "none.html")
    assert (tmp_path / "none.html").is_file()
