"""Jobs: detached processes that run a command of ``llm-forget``, one after the other. The files here are all that pages read.

A job is a folder: ``job.json`` (the command), ``state.json`` (what became of it), ``log`` (what it said), ``progress.jsonl``
(what training measured) and ``lock``, which the process and its children hold as long as one of them lives. Nothing in it is
text of the data: the commands print and write none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.certificates.keys import PASSPHRASE_VARIABLE
from llm_forget.errors import UserError
from llm_forget.studio.job import STARTING, is_locked, read_state
from llm_forget.studio.place import Place
from llm_forget.utils.files import write_json
from llm_forget.utils.progress import PROGRESS_VARIABLE
from llm_forget.utils.safe_json import NotPlainJson, read_json

_FOLDER = re.compile(r"\d{4,}")
_LOG_TAIL = 8 << 10  # bytes of a log that a page reads
WAITING, RUNNING, DONE = "waiting", "running", "done"
MISSED, STOPPED, FAILED = "done, goal not reached", "stopped", "failed"
OVER = (DONE, MISSED, STOPPED, FAILED)
_INTERRUPTED = (130, 143, 129)


@dataclass(frozen=True)
class Job:
    """One job, as its folder says.

    Attributes:
        id: its number.
        folder: its folder.
        argv: arguments of ``llm-forget``.
        writes: the folder in the root that it writes, or "".
        state: waiting, running, done, stopped or failed.
        seconds: how long it has run.
    """

    id: str
    folder: Path = field(repr=False)
    argv: tuple[str, ...]
    writes: str
    state: str
    seconds: float | None

    def said(self, lines: int = 12) -> list[str]:
        """The last lines of its log."""
        try:
            with (self.folder / "log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def measured(self) -> list[dict[str, Any]]:
        """The rows that training wrote so far."""
        try:
            text = (self.folder / "progress.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        rows = []
        for line in text.splitlines():
            with suppress(ValueError):  # being written
                row = json.loads(line)
                if isinstance(row, dict) and "phase" in row and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows


def command_line(argv: Sequence[str]) -> str:
    """A command line to read and to copy."""
    return shlex.join(["llm-forget", *argv])


class Jobs:
    """The jobs of a place.

    Args:
        place: the place.
        at_once: how many run at the same time.
    """

    def __init__(self, place: Place, at_once: int = 1) -> None:
        self.place, self.at_once = place, at_once
        self.folder = place.private / "jobs"
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def list(self) -> list[Job]:
        """All jobs, the newest first."""
        found = [self._read(one) for one in self.folder.iterdir() if _FOLDER.fullmatch(one.name)]
        return sorted((one for one in found if one is not None), key=lambda one: -int(one.id))

    def get(self, id: object) -> Job:
        """One job.

        Raises:
            UserError: there is none.
        """
        found = self._read(self.folder / str(id)) if _FOLDER.fullmatch(str(id)) else None
        if found is None:
            raise UserError("there is no such job; choose one from the list")
        return found

    def of(self, writes: str) -> Job | None:
        """The newest job that writes a folder."""
        return next((one for one in self.list() if writes and one.writes == writes), None)

    def start(self, argv: Sequence[str], writes: str = "") -> Job:
        """Put a command into the queue. It runs on when this process ends.

        Raises:
            UserError: a job that writes the same folder is not over.
        """
        before = self.of(writes)
        if before is not None and before.state not in OVER:
            raise UserError(f"job {before.id} already writes {writes}; wait until it is over, or stop it")
        folder = self._new()
        made = {"argv": list(argv), "writes": writes, "queued": time.time(), "at_once": self.at_once}
        write_json(folder / "job.json", made)
        environment = {**os.environ, PROGRESS_VARIABLE: str(folder / "progress.jsonl")}
        with (folder / "log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-P", "-m", "llm_forget.studio.job", str(folder)],
                cwd=self.place.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self.get(folder.name)

    def stop(self, id: object) -> Job:
        """Ask a job to stop; training saves a checkpoint first."""
        for _ in range(200):  # its process may be starting
            job, pid = self.get(id), read_state(self.folder / str(id)).get("pid")
            if pid is not None or job.state in OVER:
                break
            time.sleep(0.1)
        if job.state in OVER or not isinstance(pid, int):
            raise UserError(f"job {job.id} is {job.state}; there is nothing to stop")
        try:
            os.killpg(pid, signal.SIGINT)
        except ProcessLookupError:
            raise UserError(f"job {job.id} has just ended") from None
        return self.get(id)

    def again(self, id: object) -> Job:
        """Run the command of a job again, which goes on where it was stopped."""
        job = self.get(id)
        return self.start(job.argv, job.writes)

    def _new(self) -> Path:
        for number in range(1 + max((int(one.name) for one in self.folder.glob("[0-9]*")), default=0), 10**6):
            folder = self.folder / f"{number:04d}"
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return folder
        raise UserError(f"{self.folder} is full; remove old jobs")

    def _read(self, folder: Path) -> Job | None:
        try:
            made: Any = read_json(folder / "job.json")
            argv, writes, queued = tuple(map(str, made["argv"])), str(made["writes"]), float(made["queued"])
        except (NotPlainJson, OSError, KeyError, TypeError, ValueError):
            return None
        state = read_state(folder)
        status = state.get("status")
        began, ended = state.get("began"), state.get("ended")
        lives = is_locked(folder / "lock") or (not state and time.time() - queued < STARTING)
        if status is None and lives:
            word = WAITING if began is None else RUNNING
        elif status is None or status in _INTERRUPTED or status < 0:
            word = STOPPED
        else:
            word = {0: DONE, 1: MISSED}.get(status, FAILED)
        seconds = None if began is None else (ended or time.time()) - began
        return Job(folder.name, folder, argv, writes, word, seconds if lives or ended else None)


def result_of(
    place: Place, argv: Sequence[str], *, asked: str = "", secret: str | None = None, seconds: float = 600
) -> str:
    """Run a short command of ``llm-forget`` and wait for it. What it prints is in memory only.

    Args:
        place: where it runs.
        argv: its arguments.
        asked: its standard input, for text that must not stand in a command line.
        secret: a passphrase.
        seconds: after which it is ended.

    Returns:
        Its standard output.

    Raises:
        UserError: with what it said, if its exit status is not 0 or 1.
    """
    environment = {**os.environ, **({} if secret is None else {PASSPHRASE_VARIABLE: secret})}
    command = [sys.executable, "-P", "-m", "llm_forget.cli", *argv]
    try:
        done = subprocess.run(
            command, cwd=place.root, env=environment, input=asked, capture_output=True, text=True, timeout=seconds,
            errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} took longer than {seconds / 60:.0f} minutes; run it on the command line") from None
    if done.returncode not in (0, 1):
        told = done.stderr.strip().removeprefix("error: ").split("\nRun it again with --debug")[0]
        raise UserError(told or f"{argv[0]} failed")
    return done.stdout
