"""`llm-forget methods`: list the methods and wrappers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json, print_table
from llm_forget.utils.terminal import echo

Markdown = Annotated[bool, typer.Option("--markdown", help="print the table of recipes/README.md")]
Write = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="with --markdown: replace the table in this file, for example recipes/README.md"),
]


def methods(markdown: Markdown = False, write: Write = None, as_json: Json = False) -> None:
    """List all methods and gradient wrappers.

    "cost" is the work of one training step relative to grad_diff.

    \b
    Examples:
      llm-forget methods
      llm-forget methods --json
      llm-forget methods --markdown --write recipes/README.md
    """
    from llm_forget.cli.catalogue import method_entries, methods_table, with_table, wrapper_entries
    from llm_forget.errors import UserError
    from llm_forget.utils.files import write_text

    if as_json:
        named = [dict(zip(("name", "does", "adds", "source"), row, strict=True)) for row in wrapper_entries()]
        print_json({"methods": [asdict(entry) for entry in method_entries()], "wrappers": named})
        return
    if write is not None:
        if not markdown or not write.is_file():
            raise UserError(f"--write {write}: give an existing Markdown file, together with --markdown")
        write_text(write, with_table(write.read_text(encoding="utf-8"), methods_table(method_entries())))
        return
    if markdown:
        echo(methods_table(method_entries()).removesuffix("\n"))
        return
    rows = [
        [entry.name, f"{entry.cost:.2f}", entry.recipe or "–", entry.retain, ", ".join(entry.needs) or "–", entry.paper]
        for entry in method_entries()
    ]
    left_out = print_table(["method", "cost", "recipe to copy", "retain term", "needs", "source"], rows)
    echo()
    wrapped = [[name, adds, does, source] for name, does, adds, source in wrapper_entries()]
    left_out += print_table(["wrapper", "added cost per step", "what it does", "source"], wrapped)
    if left_out:
        echo("\nThis terminal is too narrow for all columns; --json has all of them.")
