"""`llm-forget methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict

from llm_forget.cli.console import Json, print_json, print_table


def methods(markdown: bool = False, as_json: Json = False) -> None:
    """List methods and wrappers: source, needs, cost against grad_diff, recipe. --markdown prints the README's table.

    Examples:
      llm-forget methods

      llm-forget methods --json
    """
    from llm_forget.cli.catalogue import method_entries, methods_table, wrapper_entries

    if as_json:
        named = [dict(zip(("name", "does", "adds", "source"), row, strict=True)) for row in wrapper_entries()]
        print_json({"methods": [asdict(entry) for entry in method_entries()], "wrappers": named})
        return
    if markdown:
        print(methods_table(method_entries()), end="")
        return
    rows = [
        [entry.name, f"{entry.cost:.2f}", entry.recipe or "–", entry.retain, ", ".join(entry.needs) or "–", entry.paper]
        for entry in method_entries()
    ]
    left_out = print_table(["method", "cost", "recipe to copy", "retain term", "needs", "source"], rows)
    print()
    wrapped = [[name, adds, does, source] for name, does, adds, source in wrapper_entries()]
    left_out += print_table(["wrapper", "adds to a step", "what it does", "source"], wrapped)
    if left_out:
        print("\nThis terminal is too narrow for every column: the README's table and --json have them all.")
