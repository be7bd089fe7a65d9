"""`llm-forget methods`: what there is to choose from."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def methods(markdown: bool = False) -> None:
    """List methods and wrappers: source, needs, cost against grad_diff, recipe. --markdown prints the README's table."""
    from llm_forget.catalogue import method_entries, methods_table, wrapper_entries

    if markdown:
        print(methods_table(method_entries()), end="")
        return
    console = Console()
    table = Table("method", "source", "retain term", "needs", "cost", "recipe to copy")
    for entry in method_entries():
        needs = ", ".join(entry.needs) or "–"
        table.add_row(entry.name, entry.paper, entry.retain, needs, f"{entry.cost:.2f}", entry.recipe or "–")
    console.print(table)
    wrappers = Table("wrapper", "what it does", "adds to a step", "source")
    for row in wrapper_entries():
        wrappers.add_row(*row)
    console.print(wrappers)
