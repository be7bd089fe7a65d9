"""`llm-forget plan`: what a recipe will take of memory, and the largest batch that fits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json


def plan(
    context: typer.Context,
    memory: Annotated[
        str | None, typer.Option(help="of the card, for example 40GB: also says the largest batch")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="of the longest row; by default encoding.max_length")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="plan for this machine's CPU instead of a GPU")] = False,
    as_json: Json = False,
) -> None:
    """Plan the memory of a recipe without loading a weight: --config FILE [--key.sub VALUE …].

    Example:
      llm-forget plan --config mine.yaml --memory 40GB --train.batch_size 4
    """
    from rich.console import Console
    from rich.table import Table

    from llm_forget.cli.options import parse_command_line
    from llm_forget.config import UnlearnRecipe
    from llm_forget.errors import RecipeError
    from llm_forget.memory.plan import GB, largest_batch, parse_memory
    from llm_forget.memory.plan import plan as make_plan

    recipe = parse_command_line(UnlearnRecipe, context.args)
    if tokens is not None and tokens < 2:
        raise RecipeError(f"tokens is {tokens}; a row has at least 2")
    size = None if memory is None else parse_memory(memory)
    found = make_plan(recipe, on_card=not cpu, tokens=tokens)
    most = None if size is None else largest_batch(recipe, size, on_card=not cpu, tokens=tokens)
    if as_json:
        print_json({**asdict(found), "needed": found.needed, "largest_batch": most})
        return
    table = Table("what", "GB", title=f"a micro-batch of {found.rows} rows of {found.tokens} tokens")
    for name in ("weights", "adapter", "optimizer", "gradients", "reference", "activations", "logits"):
        table.add_row(name, f"{getattr(found, name) / GB:.2f}")
    where = "on the card, with CUDA's own" if found.on_card else "in all, with the best state"
    table.add_row(where, f"{found.needed / GB:.2f}", style="bold")
    if found.on_card:
        table.add_row("best state (CPU memory)", f"{found.best_state / GB:.2f}")
    console = Console()
    console.print(table)
    if size is not None:
        advice = (
            f"largest train.batch_size: {most}" if most else "not even one row fits; see train.gradient_checkpointing"
        )
        console.print(f"{memory}: {advice}", highlight=False)
