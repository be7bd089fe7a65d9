"""`llm-forget report`: one run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="run folder")],
    to: Annotated[
        Path | None, typer.Option("--to", help="page to write; default: report.html in the run folder")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="run of the model before unlearning; default: found next to the run folder")
    ] = None,
    oracle: Annotated[
        Path | None,
        typer.Option(help="run of a model that never saw the forget set; default: found next to the run folder"),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="leave out text even if the evaluation kept it")] = False,
) -> None:
    """Write a report of one run: a single HTML file that opens offline, for readers who do not code.

    It holds no text of the data unless the evaluation recipe set keep_text: true.

    Examples:
      llm-forget report runs/npo

      llm-forget report runs/npo --target runs/target --oracle runs/oracle --to npo.html
    """
    from llm_forget.report.page import write_report

    print(write_report(run, to, target=target, oracle=oracle, redact=redact))
