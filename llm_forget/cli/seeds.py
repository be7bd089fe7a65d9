"""`llm-forget seeds`: mean and spread over runs with different seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json, say_notes


def seeds(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders of one recipe, one for each seed")],
    suite: Annotated[str, typer.Option(metavar="NAME", help="suite that all runs were evaluated on")] = "demo",
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="JSON file to write the numbers to")] = None,
    as_json: Json = False,
) -> None:
    """Print mean and spread over runs that differ only in their seed.

    The spread is the standard deviation over runs (with n − 1).

    \b
    Example:
      llm-forget seeds runs/mine-0 runs/mine-1 runs/mine-2 --suite custom
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from llm_forget.evaluation.recount import doubts_about
    from llm_forget.evaluation.results import open_results
    from llm_forget.evaluation.seeds import read_seeds, write_seeds
    from llm_forget.utils.terminal import plain

    found, known = read_seeds(runs, suite)
    if to is not None:
        write_seeds(found, known, suite, to)
    notes = [f"{run}: {doubt}" for run in runs for doubt in doubts_about(open_results(run / "eval" / f"{suite}.json"))]
    say_notes(notes)
    if as_json:
        print_json(
            {
                "suite": suite,
                "notes": notes,
                "seeds": known,
                "numbers": {name: asdict(one) for name, one in found.items()},
            }
        )
        return
    table = Table("number", "mean", "spread", "lowest", "highest", "runs", title=plain(f"{suite}, seeds {known}"))
    for name, one in found.items():
        figures = [f"{value:.4f}" for value in (one.mean, one.spread, one.lowest, one.highest)]
        table.add_row(plain(name), *figures, f"{one.n}" + (f" ({one.n_nan} not scored)" if one.n_nan else ""))
    Console().print(table)
