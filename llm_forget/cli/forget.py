"""`llm-forget forget`: from a model and a list of rows to a measured adapter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json, print_wrapped, say_notes
from llm_forget.cli.entry import INTERRUPTED
from llm_forget.errors import Interrupted
from llm_forget.utils.signals import Ended
from llm_forget.utils.terminal import echo

if TYPE_CHECKING:
    from llm_forget.forgetting.order import Order
    from llm_forget.forgetting.run import Forgotten
    from llm_forget.forgetting.work import Work

Model = Annotated[str, typer.Option(metavar="MODEL", help="folder or hub id of the model that knows the rows")]
ForgetRows = Annotated[str, typer.Option(metavar="FILE", help="rows to forget")]
RetainRows = Annotated[str | None, typer.Option(metavar="FILE", help="rows to keep; default: the model supplies some")]
HoldoutRows = Annotated[str | None, typer.Option(metavar="FILE", help="similar rows that no model was trained on")]
NeighbourRows = Annotated[
    str | None, typer.Option(metavar="FILE", help="rows about similar people, to keep; measured only")
]
BaseModel = Annotated[str | None, typer.Option(metavar="MODEL", help="the model before it learned the rows")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="memory to plan for, e.g. 24GB; default: what is free")
]


def forget(
    context: typer.Context,
    model: Model,
    forget: ForgetRows,
    retain: RetainRows = None,
    holdout: HoldoutRows = None,
    neighbours: NeighbourRows = None,
    base: BaseModel = None,
    oracle: Annotated[
        str | None, typer.Option(metavar="MODEL", help="a model, or its run folder, that never saw the rows")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DIR", help="folder to write; default: runs/NAME")] = None,
    memory: Memory = None,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="attack the result in a screening")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what another order left")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before the work")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and stop")] = False,
    as_json: Json = False,
) -> None:
    """Make a model forget rows, and measure it.

    Says what it found, then unlearns by the default, measures, audits and writes
    a report. Run it again after an interruption and it goes on. Any field of a
    recipe may follow as --key.sub VALUE. Exits with status 1 if a bar is missed.

    \b
    Examples:
      llm-forget forget --model MODEL --forget forget.jsonl
      llm-forget forget --model MODEL --forget forget.jsonl --retain keep.jsonl \\
        --base BASE --holdout unseen.jsonl --yes
    """
    order = order_of(
        context.args, model, forget, retain, holdout, neighbours, base=base, oracle=oracle, to=to, memory=memory
    )
    with _going_on():
        done = _forget(order, audit=audit, overwrite=overwrite, yes=yes, dry_run=dry_run, as_json=as_json)
    if done is not None:
        raise typer.Exit(0 if done.reached else 1)


@contextmanager
def _going_on() -> Iterator[None]:
    """Context in which an interruption says that the same command goes on."""
    try:
        yield
    except (Ended, KeyboardInterrupt, typer.Abort) as ended:
        status = ended.exit_code if isinstance(ended, Ended) else INTERRUPTED
        echo(file=sys.stderr)  # after ^C, or a progress line
        raise Interrupted("run the same command again, and it goes on where it ended", status) from None


def _forget(order: Order, *, audit: bool, overwrite: bool, yes: bool, dry_run: bool, as_json: bool) -> Forgotten | None:
    """Plan, ask, and carry out; None if nothing was to be done."""
    from llm_forget.forgetting.found import look
    from llm_forget.forgetting.work import told, work_for

    work = work_for(look(order))
    if dry_run and as_json:
        print_json(plan_of(work))
        return None
    for line in [] if as_json else told(work):
        print_line(line)
    if dry_run or not (yes or as_json or _agreed()):
        return None
    from llm_forget.forgetting.run import carry_out

    done = carry_out(work, audit=audit, overwrite=overwrite)
    if as_json:
        print_json({**plan_of(work), **result_of(done)})
    else:
        show(done)
    return done


def _agreed() -> bool:
    """Whether a person at a terminal agrees; elsewhere nobody is asked, because nothing is replaced."""
    return not (sys.stdin.isatty() and sys.stdout.isatty()) or typer.confirm("Go on?", default=True)


def order_of(
    more: list[str],
    model: str,
    forget: str,
    retain: str | None,
    holdout: str | None,
    neighbours: str | None,
    *,
    base: str | None,
    memory: str | None,
    oracle: str | None = None,
    to: str | None = None,
) -> Order:
    """The order that options give; ``more`` are fields of a recipe."""
    from llm_forget.cli.options import read_overrides
    from llm_forget.forgetting.order import Order
    from llm_forget.memory.plan import parse_memory
    from llm_forget.utils.build import with_overrides

    return Order(
        model,
        forget,
        retain,
        holdout,
        neighbours,
        base=base,
        oracle=oracle,
        to=to,
        memory=None if memory is None else parse_memory(memory),
        changes=with_overrides({}, read_overrides(more)),
    )


def print_line(line: str) -> None:
    """A line with a label: wrapped below its text in a terminal."""
    from rich.console import Console
    from rich.padding import Padding

    from llm_forget.utils.terminal import plain

    if not sys.stdout.isatty():
        echo(line)
        return
    label, text = line[:12], line[12:]
    console = Console()
    for place, part in enumerate(plain(text).wrap(console, max(20, console.width - 12))):
        console.print(Padding(plain(("" if place else label).ljust(12) + part.plain.rstrip()), 0), highlight=False)


def plan_of(work: Work) -> dict[str, Any]:
    """What was found and what will be done, for scripts."""
    found = work.found
    sets = {"forget": found.sets.forget, "retain": found.sets.retain, "neighbours": found.neighbours}
    return {
        "found": {
            "weights": found.weights,
            "rows": {name: len(rows) for name, rows in sets.items()},
            "named": found.named,
            "device": found.machine.name,
            "free_bytes": found.machine.free,
        },
        "plan": {
            "recipe": asdict(work.recipe),
            "bytes": work.memory.needed,
            "seconds": work.seconds,
            "steps": work.steps,
            "changed": work.changed,
            "missing": work.missing(),
            "folder": str(found.order.folder),
        },
    }


def result_of(done: Forgotten) -> dict[str, Any]:
    """The outcome, for scripts."""
    return {
        "headline": done.headline,
        "reached": done.reached,
        "bars": [asdict(one) for one in done.bars],
        "run": str(done.run),
        "adapter": None if done.adapter is None else str(done.adapter),
        "record": dict(done.record),
        "audit": done.grade,
        "report": None if done.report is None else str(done.report),
        "serve": done.serve,
        "notes": done.notes,
    }


def show(done: Forgotten) -> None:
    """Print the outcome: the headline first, then each bar, the files and the commands."""
    from llm_forget.forgetting.bars import lines

    print_wrapped(done.headline)
    for line in lines(done.bars):
        print_wrapped(f"  {line}")
    print_wrapped(f"run: {done.record['reason']}")
    if done.grade is not None:
        print_wrapped(f"audit: {done.grade}")
    say_notes(done.notes)
    echo(f"report: {done.report}" if done.report is not None else f"results: {done.run / 'eval'}")
    for command in done.serve:
        echo(f"  {command}")
