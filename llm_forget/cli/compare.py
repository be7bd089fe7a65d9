"""`llm-forget compare` and `llm-forget report`: runs as a table in the terminal, and as a page to hand over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llm_forget.cli.console import Json, print_json, print_table

_Runs = Annotated[list[Path], typer.Argument(help="run folders, or folders that hold some")]


def compare(
    runs: _Runs,
    to: Annotated[Path | None, typer.Option("--to", help="the page; default: comparison.html beside the runs")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="compare with this run, by name or role; default: target")
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="write no page")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs: a table here, and a page with plots that opens offline.

    Folders that are no complete runs are named and passed over.

    Examples:
      llm-forget compare runs/*

      llm-forget compare runs/demo --baseline target --to comparison.html

      llm-forget compare runs --json
    """
    from llm_forget.report.page import find_baseline, write_comparison
    from llm_forget.runs import compare as compare_runs
    from llm_forget.runs import load_runs

    page = None
    if table_only or (as_json and to is None):
        frame = load_runs(_folders(runs))
    else:
        page, frame = write_comparison(_folders(runs), to or _beside(runs) / "comparison.html", baseline=baseline)
    notes = Console(stderr=True)
    for path, reason in frame.attrs["skipped"].items():
        notes.print(f"[yellow]passed over[/] {path}: {reason}", highlight=False, soft_wrap=True)
    base = find_baseline(frame, baseline)
    if as_json:
        changes = None if base is None or frame.empty else compare_runs(frame, base).reset_index()
        print_json(
            {
                "runs": [{"run": name, **row.dropna().to_dict()} for name, row in frame.iterrows()],
                "baseline": base,
                "changes": [] if changes is None else changes.to_dict("records"),
                "skipped": frame.attrs["skipped"],
                "page": None if page is None else str(page),
            }
        )
        return
    _print(frame, base)
    if page is not None:
        print(f"page: {page}")


def report(
    run: Annotated[Path, typer.Argument(help="the run folder")],
    to: Annotated[Path | None, typer.Option("--to", help="the page; default: report.html in the run folder")] = None,
    target: Annotated[Path | None, typer.Option(help="the run before unlearning; default: looked for beside")] = None,
    oracle: Annotated[Path | None, typer.Option(help="the run that never saw it; default: looked for beside")] = None,
    redact: Annotated[bool, typer.Option("--redact", help="leave out text even where it was kept")] = False,
) -> None:
    """Write one run's report: a single file that opens offline, for somebody who does not read code.

    It holds no text of the data, unless the evaluation's recipe said keep_text: true.

    Examples:
      llm-forget report runs/npo

      llm-forget report runs/npo --target runs/target --oracle runs/oracle --to npo.html
    """
    from llm_forget.report.page import write_report

    print(write_report(run, to, target=target, oracle=oracle, redact=redact))


def _folders(given: list[Path]) -> list[Path]:
    """What a shell's runs/* gives, without the files in it; a path that does not exist stays, and is refused later."""
    return [path for path in given if not path.is_file()]


def _beside(given: list[Path]) -> Path:
    folders = _folders(given) or [Path()]
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([path.resolve().parent for path in folders]))


def _print(frame: Any, base: str | None) -> None:
    from llm_forget.report.tables import runs_table
    from llm_forget.report.words import judge

    oracles = list(frame.index[frame["role"] == "oracle"])
    oracle = oracles[0] if len(oracles) == 1 else None
    table = runs_table(frame, base, oracle)[0]
    head = [name.replace(".", " ").replace("_", " ") for name in table.head]
    left_out = print_table(head, [[cell.text for cell in row] for row in table.rows])
    if left_out:
        print(f"{left_out} columns do not fit this terminal; the page and --json have them all")
    for name in frame.index[frame["role"] == "unlearned"]:
        print(f"{name}: {judge(frame, None, name, base, oracle).headline}")
