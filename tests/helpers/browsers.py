"""Headless Chromium, which looks nothing up outside this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_CHROMIUM = shutil.which("chromium")
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
              "--disable-sync")  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a headless browser, or skip the test."""
    if _CHROMIUM is None:
        pytest.skip("chromium is not installed: bash scripts/install_chromium.sh")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()
