"""The studio in a real browser that reaches nothing but this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from memorised import SECRET
from studios import Watched, open_page, studio, write_root

pytest.importorskip("gradio", reason="pip install 'llm-forget[studio]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(memorised_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studio") / "root"
    folder.mkdir()
    return write_root(folder, memorised_folder / "model")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_from_a_table_to_a_forgotten_person_with_a_report(browser: Any, root: Path) -> None:
    watched, clicks = Watched(), 0
    with studio(root) as address:
        page = open_page(browser, address, watched)

        def click(name: str) -> None:
            nonlocal clicks
            clicks += 1
            page.get_by_role("button", name=name, exact=True).or_(page.get_by_role("link", name=name)).click()

        page.set_input_files("input[type=file]", root / "people.csv")  # one click and a choice
        clicks += 1
        page.get_by_label("Full name of the person").fill("Ada of " + SECRET)
        click("Find rows")
        page.locator("select[data-row]").first.wait_for()
        assert SECRET not in page.locator(".scroll").inner_text()
        click("Use these rows")
        page.get_by_text("Missing, and what that costs").wait_for(timeout=90_000)
        click("Start")
        page.get_by_role("link", name="Open the report").wait_for(timeout=240_000)
        with page.context.expect_page() as opened:
            click("Open the report")
        report = opened.value
        report.get_by_role("heading", name="Unlearning report").wait_for()
        assert SECRET not in report.content()
        watched.nothing()
        assert clicks <= 10
    assert (root / "runs/request-1/forgotten/report.html").is_file()
    kept = [one for one in root.rglob("*") if one.is_file() and ".studio" in one.parts]
    assert kept
    assert not [one for one in kept if SECRET.encode() in one.read_bytes()]
    assert SECRET not in (root.parent / "studio.log").read_text()
