"""`llm-forget seeds`: what several seeds of one recipe come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json


def seeds(
    runs: Annotated[list[Path], typer.Argument(help="run folders of one recipe with several seeds")],
    suite: Annotated[str, typer.Option(help="the suite that all of them were measured on")] = "demo",
    to: Annotated[Path | None, typer.Option("--to", help="also write the numbers to this JSON file")] = None,
    as_json: Json = False,
) -> None:
    """Mean and spread of every number over runs that differ in their seed alone.

    Example:
      llm-forget seeds runs/mine-0 runs/mine-1 runs/mine-2 --suite custom
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llm_forget.evaluation.seeds import read_seeds, write_seeds

    found, known = read_seeds(runs, suite)
    if to is not None:
        write_seeds(found, known, suite, to)
    if as_json:
        print_json({"suite": suite, "seeds": known, "numbers": {name: asdict(one) for name, one in found.items()}})
        return
    table = Table("number", "mean", "spread", "lowest", "highest", "runs", title=f"{suite}, seeds {known}")
    for name, one in found.items():
        figures = [f"{value:.4f}" for value in (one.mean, one.spread, one.lowest, one.highest)]
        table.add_row(name, *figures, f"{one.n}" + (f" ({one.n_nan} not scored)" if one.n_nan else ""))
    Console().print(table)
