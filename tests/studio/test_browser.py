"""The studio in a real browser that reaches nothing but this machine."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from memorised import FORGET, SECRET, write_rows
from studios import Watched, open_page, studio, write_root

pytest.importorskip("gradio", reason="pip install 'llm-forget[studio]'")
pytestmark = pytest.mark.slow
MOST_CLICKS = 10
HAS_VALUE = "value => [...document.querySelectorAll('input')].some(one => one.value === value)"


@dataclass
class Walked:
    """What a person did, and the pages that opened for it."""

    root: Path
    clicks: int = 0
    watched: Watched = field(default_factory=Watched)
    pages: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def make_root(memorised: Path, folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    return write_root(root, memorised / "model")


@pytest.fixture(scope="module")
def walked(browser: Any, memorised_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """From a table to a forgotten person, the report and the certificate."""
    done = Walked(make_root(memorised_folder, tmp_path_factory.mktemp("studio")))
    with studio(done.root) as address:
        page = open_page(browser, address, done.watched)

        def click(name: str, role: str = "button") -> None:
            done.clicks += 1
            page.get_by_role(role, name=name, exact=True).click()

        def read(name: str, heading: str) -> None:
            with page.context.expect_page() as opened:
                click(name, "link")
            opened.value.get_by_role("heading", name=heading).first.wait_for()
            done.pages[name] = opened.value.content()

        page.set_input_files("input[type=file]", done.root / "people.csv")  # one click and a choice
        done.clicks += 1
        page.get_by_label("Full name of the person").fill("Ada of " + SECRET)
        click("Find rows")
        page.locator("select[data-row]").first.wait_for(timeout=90_000)
        done.pages["Find"] = page.locator(".scroll").inner_text()
        click("Use these rows")
        page.get_by_text("Missing, and what that costs").wait_for(timeout=90_000)
        click("Start")
        page.get_by_role("link", name="Open the report").wait_for(timeout=240_000)
        read("Open the report", "Unlearning report")
        click("Evidence", "tab")
        page.wait_for_function(HAS_VALUE, arg="runs/request-1/forgotten")  # the screen reads the folder when it opens
        page.get_by_label("Id of the request").fill("R-17")
        page.get_by_label("Passphrase of the key").fill("correct horse battery")
        click("Make a key")
        page.wait_for_function(HAS_VALUE, arg="office.key")
        click("Sign")
        page.get_by_role("link", name="Page for the person").wait_for(timeout=120_000)
        read("Page for the person", "")
        page.context.close()
    return done


def test_from_a_table_to_a_forgotten_person_with_a_report_and_a_certificate(walked: Walked) -> None:
    walked.watched.nothing()
    assert walked.clicks <= MOST_CLICKS
    run = walked.root / "runs/request-1/forgotten"
    result = json.loads((run / "result.json").read_text())
    assert result["after"]["forget"] < 0.2 < 0.8 < result["before"]["forget"]
    assert (run / "report.html").is_file()
    assert "R-17" in (run / "certificate/person.html").read_text()
    assert not [name for name, text in walked.pages.items() if SECRET in text]
    kept = [one for one in walked.root.rglob("*") if one.is_file() and ".studio" in one.parts]
    assert kept
    assert not [one for one in kept if SECRET.encode() in one.read_bytes()]
    assert SECRET not in (walked.root.parent / "studio.log").read_text()


def test_text_is_hidden_until_one_browser_unlocks_it(browser: Any, walked: Walked) -> None:
    watched = Watched()
    with studio(walked.root) as address:
        pages = [open_page(browser, address, watched) for _ in range(2)]
        for page in pages:
            page.get_by_role("tab", name="Compare").click()
            page.get_by_label("runs/request-1/forgotten").check()
            page.get_by_text("Text is hidden").wait_for(timeout=60_000)
            assert SECRET not in page.content()
        page, other = pages
        page.get_by_role("button", name="Show text").click()
        page.get_by_text(FORGET[0][0]).first.wait_for(timeout=60_000)
        assert SECRET not in other.content()
        page.get_by_role("button", name="Hide text").click()
        page.get_by_text("Text is hidden").wait_for(timeout=60_000)
        assert SECRET not in page.content()
        page.get_by_role("tab", name="Audit").click()
        page.locator("button[data-cell]").first.click()
        page.get_by_text("no oracle to compare with", exact=True).wait_for()
        page.get_by_role("tab", name="Evidence").click()
        page.wait_for_function(HAS_VALUE, arg="office.key.pub")
        page.get_by_role("button", name="Check the run above").click()
        page.get_by_text("Accepted", exact=True).wait_for(timeout=60_000)
        watched.nothing()


CURVES = """() => Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.calcdata.map(
  one => [one[0].trace.name, [...new Set(one.map(point => point.x))]])))"""


def test_a_run_outlives_the_studio_and_three_browsers_see_its_whole_curve(
    browser: Any, memorised_folder: Path, tmp_path: Path
) -> None:
    root, gone, watched = make_root(memorised_folder, tmp_path), Watched(), Watched()
    write_rows(root / "forget.jsonl", FORGET)
    measured = root / ".studio/jobs/0001/progress.jsonl"
    with studio(root, end=signal.SIGKILL) as address:
        page = open_page(browser, address, gone)
        page.get_by_role("tab", name="Plan").click()
        page.get_by_label("Rows to forget").click()
        page.get_by_role("option", name="forget.jsonl").click()
        page.get_by_label("Attack the result afterwards").uncheck()
        page.get_by_role("button", name="Start", exact=True).click()
        until = time.monotonic() + 120
        while not (measured.is_file() and measured.read_text().count("\n") >= 3):
            assert time.monotonic() < until
            time.sleep(0.05)
        page.context.close()
    state = json.loads((root / ".studio/jobs/0001/state.json").read_text())
    assert "status" not in state, "it is killed in mid-run"
    with studio(root) as address:
        pages = [open_page(browser, address, watched, width=width) for width in (1280, 1280, 390)]
        for page in pages:
            page.get_by_role("tab", name="Run", exact=True).click()
        for page in pages:
            page.get_by_role("link", name="Open the report").wait_for(timeout=240_000)
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
            page.wait_for_function("document.querySelector('.js-plotly-plot')?.calcdata?.length > 0")
        curves = [page.evaluate(CURVES) for page in pages]
        watched.nothing()
    state = json.loads((root / ".studio/jobs/0001/state.json").read_text())
    assert state["status"] in (0, 1)
    rows = [row for row in map(json.loads, measured.read_text().splitlines()) if "loss" in row]
    steps = [row["step"] for row in rows]
    assert len(steps) > 3
    assert steps == list(range(1, len(steps) + 1))
    assert curves[0] == curves[1] == curves[2]
    assert curves[0]["forget loss"] == steps
