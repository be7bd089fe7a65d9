"""`llm-forget report`: one run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.utils.terminal import echo


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="page to write; default: report.html in the run folder")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="run of the model before unlearning; default: found next to the run folder"),
    ] = None,
    oracle: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="run of a model that never saw the forget set; default: found next to the run folder"
        ),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="leave out text even if the evaluation kept it")] = False,
) -> None:
    """Write an HTML report of one run for readers who do not code.

    The report is a single file that opens offline. It holds no text of the data unless the evaluation had keep_text: true.

    \b
    Examples:
      llm-forget report runs/npo
      llm-forget report runs/npo --target runs/target --oracle runs/oracle
    """
    from llm_forget.report.page import write_report

    echo(write_report(run, to, target=target, oracle=oracle, redact=redact))
