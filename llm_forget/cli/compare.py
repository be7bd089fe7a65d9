"""`llm-forget compare`: several runs as a table in the terminal and as a page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json, print_table, print_wrapped, say_notes
from llm_forget.utils.terminal import echo, say

if TYPE_CHECKING:
    import pandas as pd

    from llm_forget.report.comparison import Comparison


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold run folders")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="page to write; default: comparison.html next to the runs"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="run to compare with, by name or role; default: the target")
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="write no page")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs in a table and in an HTML page with plots.

    The page opens offline. Folders without a complete run are listed and skipped.

    \b
    Examples:
      llm-forget compare runs/*
      llm-forget compare runs/demo --baseline target --to comparison.html
      llm-forget compare runs --json
    """
    from rich.console import Console

    from llm_forget.report.comparison import load_comparison
    from llm_forget.report.page import write_comparison

    found = load_comparison(_folders(runs), baseline)
    page = None
    if not table_only and (to is not None or not as_json):
        page = write_comparison(found, to or _next_to(runs) / "comparison.html")
    notes = Console(stderr=True)
    for path, reason in found.frame.attrs["skipped"].items():
        say(notes, f"{path}: {reason}", label="skipped")
    say_notes(found.notes)
    if as_json:
        changes = found.changes()
        print_json(
            {
                "runs": [{"run": name, **row} for name, row in _records(found.frame)],
                "baseline": found.target,
                "changes": [
                    {"run": run, "metric": metric, **row}
                    for (run, metric), row in ([] if changes is None else _records(changes, empty=True))
                ],
                "verdicts": {run.name: found.verdict(run).lines for run in found.unlearned()},
                "notes": found.notes,
                "skipped": found.frame.attrs["skipped"],
                "page": None if page is None else str(page),
            }
        )
        return
    _print(found)
    if page is not None:
        echo(f"page: {page}")


def _records(frame: pd.DataFrame, *, empty: bool = False) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(index, values) of each row; ``empty`` keeps values that are missing. Texts stay as they are, in any encoding."""
    for index, row in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        values = dict(zip(map(str, frame.columns), row, strict=True))
        yield index, {key: value for key, value in values.items() if empty or not (value is None or value != value)}


def _folders(given: list[Path]) -> list[Path]:
    """The arguments without files, which a shell may add for ``runs/*``. A missing path is kept and refused later."""
    return [path for path in given if not path.is_file()]


def _next_to(given: list[Path]) -> Path:
    folders = _folders(given) or [Path()]
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([path.resolve().parent for path in folders]))


def _print(found: Comparison) -> None:
    from llm_forget.report.tables import runs_table

    table = runs_table(found.frame, found.oracle)[0]
    head = [name.replace(".", " ").replace("_", " ") for name in table.head]
    left_out = print_table(head, [[cell.text for cell in row] for row in table.rows])
    if left_out:
        echo(f"{left_out} columns do not fit this terminal; the page and --json have all of them")
    for run in found.unlearned():
        print_wrapped(f"{run.name}: {found.verdict(run).headline}")
