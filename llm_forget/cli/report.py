"""`llm-forget report`: one run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json, say_notes
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
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="show the questions and answers of this file; repeatable"),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="YAML", help="names of the columns in --data, for example '{question: query}'"),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="leave out text even if the evaluation kept it")] = False,
    as_json: Json = False,
) -> None:
    """Write an HTML report of one run for readers who do not code.

    The report is a single file that opens offline. It holds no text of the data unless the evaluation had keep_text: true, or
    --data names a file. The paths in the run's recipe are never read.

    \b
    Examples:
      llm-forget report runs/npo
      llm-forget report runs/npo --target runs/target --oracle runs/oracle
    """
    from llm_forget.data.examples import DataSource
    from llm_forget.report.comparison import load_around
    from llm_forget.report.page import write_report_of
    from llm_forget.utils.build import build, with_overrides

    named = with_overrides({}, {} if columns is None else {"columns": columns})
    sources = [build(DataSource, {"path": str(file), **named}, "--data and --columns") for file in data or ()]
    found = load_around(run, target, oracle)
    page = write_report_of(found, to or run / "report.html", data=sources, redact=redact)
    if as_json:
        verdict = found.verdict(found.runs[0])
        print_json({"run": found.runs[0].name, "page": str(page), "verdict": verdict.lines, "notes": found.notes})
        return
    say_notes(found.notes)
    echo(page)
