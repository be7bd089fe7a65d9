"""`llm-forget new`: the recipe that `llm-forget forget` would run, with comments, in a file to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.cli.forget import (
    BaseModel,
    ForgetRows,
    HoldoutRows,
    Memory,
    Model,
    NeighbourRows,
    RetainRows,
    order_of,
    plan_of,
)
from llm_forget.utils.terminal import echo


def new(
    context: typer.Context,
    model: Model,
    forget: ForgetRows,
    to: Annotated[Path, typer.Argument(metavar="TO", help="file to write")],
    retain: RetainRows = None,
    holdout: HoldoutRows = None,
    neighbours: NeighbourRows = None,
    base: BaseModel = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Write a recipe with comments: what `forget` would run.

    Every setting is in the file, with what it does and why it was chosen.

    \b
    Example:
      llm-forget new --model MODEL --forget forget.jsonl mine.yaml
      llm-forget unlearn --config mine.yaml
    """
    from llm_forget.cli.template import recipe_file
    from llm_forget.errors import UserError
    from llm_forget.forgetting.found import look
    from llm_forget.forgetting.work import work_for
    from llm_forget.utils.files import write_text

    if to.exists():
        raise UserError(f"{to} already exists; give another name")
    order = order_of(context.args, model, forget, retain, holdout, neighbours, base=base, memory=memory)
    work = work_for(look(order))
    try:
        write_text(to, recipe_file(work, to))
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}; give another place") from error
    if as_json:
        print_json({**plan_of(work), "file": str(to)})
        return
    echo(to)
    echo(f"run it: llm-forget unlearn --config {to}")
