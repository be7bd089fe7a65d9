"""Shared by all commands: JSON and table output, exit statuses, and errors without tracebacks."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.entry import run_entry
from llm_forget.utils.terminal import clean, echo, json_text, plain, say

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
_NUMBER = frozenset("0123456789+-−–<")  # first characters of cells that are aligned to the right


def print_json(value: Any) -> None:
    """Print JSON; NaN and infinity become null."""
    from llm_forget.evaluation.results import as_json

    echo(json_text(as_json(value)))


def say_notes(notes: Sequence[str]) -> None:
    """Print notes on standard error, one line each."""
    from rich.console import Console

    console = Console(stderr=True)
    for note in notes:
        say(console, note, label="note")


def print_wrapped(text: str) -> None:
    """Print a sentence: wrapped between words in a terminal, and in one line elsewhere."""
    from rich.console import Console

    Console().print(plain(text), highlight=False, soft_wrap=not sys.stdout.isatty())


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, console: Console | None = None) -> int:
    """Print a table with as many columns as fit the terminal, at least the first.

    Output that is not a terminal (a file, a pipe) gets all columns.

    Args:
        head: names of the columns.
        rows: cells.
        console: where to print; standard output by default.

    Returns:
        Number of columns left out.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    head, rows = (
        [clean(title, lines=False) for title in head],
        [[clean(cell, lines=False) for cell in row] for row in rows],
    )
    widths = [
        max(max(map(cell_len, title.split())), *(cell_len(row[index]) for row in rows)) if rows else len(title)
        for index, title in enumerate(head)
    ]
    room, shown = (console.width if console.is_terminal else sys.maxsize), 0
    for width in widths:
        room -= width + 2
        if room < -2 and shown > 0:
            break
        shown += 1
    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(head[:shown]):
        numbers = index > 0 and all(row[index][:1] in _NUMBER for row in rows)
        # no_wrap keeps cells in one line, so a title is wrapped here
        title = "\n".join(textwrap.wrap(title, widths[index])) if console.is_terminal and index else title
        table.add_column(Text(title), justify="right" if numbers else "left", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*map(Text, row[:shown]))  # as Text: names may contain rich markup
    if not console.is_terminal:
        whole = [max(map(cell_len, (title, *(row[index] for row in rows)))) for index, title in enumerate(head)]
        console = Console(file=console.file, width=max(80, sum(whole) + 2 * len(whole)))
    console.print(table, highlight=False)
    return len(head) - shown


def run_command(app: Callable[..., Any], argv: list[str]) -> None:
    """Run the command line and exit with a status: see ``run_entry``; 1 is success with a negative answer (``doctor``).

    Args:
        app: the typer application.
        argv: arguments without the program's name.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets an escape
    run_entry(lambda rest: app(rest, standalone_mode=True), argv)
