"""Shared by all commands: JSON and table output, exit statuses, and errors without tracebacks."""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_forget.cli.entry import run_entry
from llm_forget.utils.terminal import clean, echo, json_text, plain, say

Json = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
INTERNAL, INTERRUPTED = 3, 130
_NUMBER = frozenset("0123456789+-−–<")  # first characters of cells that are aligned to the right
_OWN_MESSAGE = (OSError, ImportError, MemoryError, RuntimeError)  # messages that never quote data rows


def print_json(value: Any) -> None:
    """Print JSON; NaN and infinity become null."""
    from llm_forget.evaluation.results import as_json

    echo(json_text(as_json(value)))


def say_notes(notes: Sequence[str]) -> None:
    """Print notes on standard error, one line each."""
    console = Console(stderr=True)
    for note in notes:
        say(console, note, label="note")


def print_wrapped(text: str) -> None:
    """Print a sentence: wrapped between words in a terminal, and in one line elsewhere."""
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
    console = console or Console()
    head, rows = (
        [clean(title, lines=False) for title in head],
        [[clean(cell, lines=False) for cell in row] for row in rows],
    )
    widths = [
        max(max(map(len, title.split())), *(len(row[index]) for row in rows)) if rows else len(title)
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
        whole = [max(map(len, (title, *(row[index] for row in rows)))) for index, title in enumerate(head)]
        console = Console(file=console.file, width=max(80, sum(whole) + 2 * len(whole)))
    console.print(table, highlight=False)
    return len(head) - shown


def run_command(app: Callable[..., Any], argv: list[str]) -> None:
    """Run the command line and exit with a status.

    0: success. 1: success with a negative answer (``doctor``). 2: wrong input; the message says what to do.
    3: an internal error, reported in one line; ``--debug`` shows the traceback. 130: interrupted.

    Args:
        app: the typer application.
        argv: arguments without the program's name.
    """
    if "--debug" in argv:
        argv = [one for one in argv if one != "--debug"]
        os.environ["LLM_FORGET_DEBUG"] = "1"
    debug = os.environ.get("LLM_FORGET_DEBUG") == "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets an escape
    try:
        run_entry(lambda rest: app(rest, standalone_mode=True), argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug:
            echo(traceback.format_exc(), file=sys.stderr)
        else:
            echo(_one_line(error), file=sys.stderr)
        sys.exit(INTERNAL)


def _one_line(error: Exception) -> str:
    """The error in one line, without a traceback. A message that could quote a data row is omitted."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    message = f": {error}" if isinstance(error, _OWN_MESSAGE) else ""
    return f"error: {type(error).__name__} in {place}{message}\nRun it again with --debug to see the traceback."
