"""A file in which a training run notes its measurements while it runs, for whoever started it: numbers only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_forget.utils.rank import process_rank

PROGRESS_VARIABLE = "LLM_FORGET_PROGRESS"  # names the file; without it nothing is written


class ProgressFile:
    """Rows of ``metrics.jsonl`` as they are made, after one row with what the run aims at.

    A file that cannot be written is no error.
    """

    def __init__(self) -> None:
        given = os.environ.get(PROGRESS_VARIABLE)
        self._file = Path(given) if given and process_rank() == 0 else None
        self._start: dict[str, Any] = {}

    def begin(self, start: Mapping[str, Any]) -> None:
        """Start the file with the numbers of the run before its first step."""
        self._start = {"phase": "start", "step": 0, **start}
        self.restart(())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self._write((row,), "a")

    def restart(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file again with the rows of a run that resumes."""
        self._write((self._start, *rows), "w")

    def _write(self, rows: Iterable[Mapping[str, Any]], mode: str) -> None:
        if self._file is None:
            return
        with suppress(OSError), self._file.open(mode, encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
