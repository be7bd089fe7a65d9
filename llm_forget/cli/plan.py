"""`llm-forget plan`: the memory that a recipe needs, and the largest batch that fits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.memory.gpus import USUAL_SHARE, Gpu, gpu_of
from llm_forget.utils.terminal import echo


def _seconds(operations: float, gpu: Gpu) -> str:
    least = operations / gpu.peak
    usual = f"about {least / USUAL_SHARE:.2g} s at {USUAL_SHARE:.0%} of it, which large models reach"
    return f": {least:.2g} s at the peak of {gpu.name}, {usual}"


def plan(
    context: typer.Context,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="GPU memory, for example 40GB; also prints the largest batch that fits"),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="its memory is known, and so is its peak: also prints seconds, for example H100"
        ),
    ] = None,
    shards: Annotated[
        int, typer.Option(metavar="N", help="GPUs over which fsdp2.yaml or zero3.yaml shards the model", min=1)
    ] = 1,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="tokens of the longest row; default: encoding.max_length")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="plan for a CPU instead of a GPU")] = False,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="run the code that the recipe names: a method of your own, or a model's")
    ] = False,
    as_json: Json = False,
) -> None:
    """Estimate the memory of a run without loading weights.

    For unlearning runs. Also accepts --config FILE and --key.sub VALUE, as unlearn does.

    \b
    Example:
      llm-forget plan --config mine.yaml --memory 40GB --train.batch_size 4
    """
    from rich.console import Console
    from rich.table import Column, Table

    from llm_forget.cli.options import parse_command_line
    from llm_forget.config import UnlearnRecipe
    from llm_forget.errors import RecipeError
    from llm_forget.memory.plan import GB, MOST_PAIRS, largest_batch, parse_memory
    from llm_forget.memory.plan import plan as make_plan
    from llm_forget.utils.own_code import without_code

    if gpu is not None and (memory is not None or cpu):
        raise RecipeError("--gpu names the memory and is not for a CPU; leave out --memory and --cpu")
    card = None if gpu is None else gpu_of(gpu)
    recipe = parse_command_line(UnlearnRecipe, context.args)
    if tokens is not None and tokens < 2:
        raise RecipeError(f"--tokens is {tokens}; give 2 or more")
    size = parse_memory(memory) if memory is not None else None if card is None else card.memory
    if not run_code:
        recipe = replace(recipe, model=replace(recipe.model, trust_remote_code=False))
    with nullcontext() if run_code else without_code("add --run-code if you trust it"):
        found = make_plan(recipe, on_card=not cpu, tokens=tokens, shards=shards)
        most = None if size is None else largest_batch(recipe, size, on_card=not cpu, tokens=tokens, shards=shards)
    if as_json:
        seconds = None if card is None else found.operations / (USUAL_SHARE * card.peak)
        print_json({**asdict(found), "needed": found.needed, "largest_batch": most, "seconds": seconds})
        return
    table = Table("part", Column("GB", justify="right"))
    for name in ("weights", "adapter", "optimizer", "gradients", "reference", "activations", "logits"):
        table.add_row(name, f"{getattr(found, name) / GB:.2f}")
    if found.gathered:
        table.add_row("gathered shards", f"{found.gathered / GB:.2f}")
    if found.preparing:
        table.add_row("choosing the adapter's inputs, above a step", f"{found.preparing / GB:.2f}")
    if found.on_card:
        table.add_row("CUDA context, allocator", f"{(found.needed - found.total) / GB:.2f}")
        table.add_row("total on the GPU", f"{found.needed / GB:.2f}", style="bold")
        table.add_row("best state (CPU memory)", f"{found.best_state / GB:.2f}")
        if found.lower_states:
            table.add_row("states of frozen blocks, at most (CPU memory)", f"{found.lower_states / GB:.2f}")
    else:
        if found.lower_states:
            table.add_row("states of frozen blocks, at most", f"{found.lower_states / GB:.2f}")
        table.add_row("best state", f"{found.best_state / GB:.2f}")
        table.add_row("total", f"{found.needed / GB:.2f}", style="bold")
    console = Console()
    size_of_step = f"micro-batch of {found.rows} rows, {found.tokens} tokens each"
    shorter = "" if tokens else " (--tokens N plans for shorter rows)"
    echo(f"train.batch_size {recipe.train.batch_size}, {size_of_step}{shorter}")
    console.print(table)
    if size is not None:
        advice = (
            f"largest train.batch_size: {most}{' or more' if most == MOST_PAIRS else ''}"
            if most
            else "not even batch size 1 fits; try --train.gradient_checkpointing true or a smaller --encoding.max_length"
        )
        echo(f"{memory or gpu}: {advice}")
    echo(
        f"a micro-batch takes {found.operations / 1e12:.3g} TFLOP" + (_seconds(found.operations, card) if card else "")
    )
