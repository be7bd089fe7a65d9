"""`llm-forget methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from llm_forget.commands.console import Json, print_json


def methods(markdown: bool = False, as_json: Json = False) -> None:
    """List methods and wrappers: source, needs, cost against grad_diff, recipe. --markdown prints the README's table.

    Examples:
      llm-forget methods

      llm-forget methods --json
    """
    from llm_forget.catalogue import method_entries, methods_table, wrapper_entries

    if as_json:
        wrapped = [dict(zip(("name", "does", "adds", "source"), row, strict=True)) for row in wrapper_entries()]
        print_json({"methods": [asdict(entry) for entry in method_entries()], "wrappers": wrapped})
        return
    if markdown:
        print(methods_table(method_entries()), end="")
        return
    console = Console()
    table = Table()
    table.add_column("method", no_wrap=True)  # what is typed or copied stands whole, whatever the width
    for heading in ("source", "retain term", "needs", "cost", "recipe to copy"):
        table.add_column(heading, overflow="fold")
    for entry in method_entries():
        needs = ", ".join(entry.needs) or "–"
        table.add_row(entry.name, entry.paper, entry.retain, needs, f"{entry.cost:.2f}", entry.recipe or "–")
    console.print(table)
    wrappers = Table("wrapper", "what it does", "adds to a step", "source")
    for row in wrapper_entries():
        wrappers.add_row(*row)
    console.print(wrappers)
