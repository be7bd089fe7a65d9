"""A studio as a person starts it: a process of its own, and headless Chromium that reaches nothing but this machine."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memorised import FORGET


def write_root(root: Path, model: Path) -> Path:
    """Write a root with a model and ``people.csv``, a table of what it knows about a family."""
    shutil.copytree(model, root / "model")
    with (root / "people.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *FORGET])
    return root


@contextmanager
def studio(root: Path, *options: str, end: int = signal.SIGINT) -> Iterator[str]:
    """Run ``llm-forget studio`` until a signal. Returns the address that it prints."""
    command = [sys.executable, "-m", "llm_forget.cli", "studio", "--root", str(root), "--port", "0", *options]
    with (root.parent / "studio.log").open("a+") as log:
        start = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield _address(process, root.parent / "studio.log", start)
        finally:
            process.send_signal(end)
            process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path, start: int) -> str:
    for _ in range(600):
        found = re.search(r"^Open (\S+)$", log.read_text()[start:], re.MULTILINE)
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the studio did not start:\n{log.read_text()[start:]}")


@dataclass
class Watched:
    """What a browser complained about. An event stream that the page itself closes is no failure."""

    outside: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        """Watch a page."""
        page.on("requestfailed", self._failed)
        page.on("response", lambda one: self.failed.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        page.on("console", lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def _failed(self, request: Any) -> None:
        stream = "/gradio_api/queue/data" in request.url or "/gradio_api/heartbeat/" in request.url
        closed = stream and request.failure == "net::ERR_ABORTED"
        if not closed:
            self.failed.append(f"{request.failure} {request.url}")

    def block(self, route: Any) -> None:
        """Let loopback through, and note and refuse everything else."""
        url = route.request.url
        if re.match(r"http://127\.0\.0\.1[:/]|data:|blob:", url):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def nothing(self) -> None:
        """Check that there was nothing to complain about."""
        assert (self.outside, self.failed, self.said) == ([], [], [])


def open_page(browser: Any, address: str, watched: Watched, *, width: int = 1280, scheme: str = "light") -> Any:
    """A page of a browser of its own at an address of the studio."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.route("**/*", watched.block)
    page = context.new_page()
    watched.watch(page)
    page.goto(address)
    page.get_by_role("heading", name="Find the rows to forget").wait_for(timeout=30_000)
    return page
