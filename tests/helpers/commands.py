"""Run a command of the command line in this process, as a user would: exit status and what was printed."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from llm_forget.cli.console import run_command
from llm_forget.cli.main import app


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    out: str
    err: str


def command(*argv: str | Path) -> Done:
    """Run ``llm-forget`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(app, [str(one) for one in argv])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Done(status, out.getvalue(), err.getvalue())
