"""`llm-forget search`: try methods and settings, and choose from the Pareto front."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.cli.forget import BaseModel, HoldoutRows, Memory, NeighbourRows, RetainRows, order_of
from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo

if TYPE_CHECKING:
    from llm_forget.trials.search import Search
    from llm_forget.trials.slots import Slots

_STORAGE = "LLM_FORGET_STORAGE"  # a URL may hold a password, so that it is in no file and no command line of a worker
_POLL = 2.0


def search(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="folder or hub id of the model that knows the rows")
    ] = None,
    forget: Annotated[str | None, typer.Option(metavar="FILE", help="rows to forget")] = None,
    retain: RetainRows = None,
    holdout: HoldoutRows = None,
    neighbours: NeighbourRows = None,
    base: BaseModel = None,
    oracle: Annotated[
        str | None, typer.Option(metavar="MODEL", help="a model, or its run folder, that never saw the rows")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="folder of the search; alone: go on, or take part in it")
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="number of trials [40]")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="N", help="start no trial after so many minutes")] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="trials at the same time")] = 1,
    methods: Annotated[str | None, typer.Option(metavar="NAMES", help="comma-separated; default: all usable")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="seed of everything random")] = 0,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="database for the trials; default: a journal in the folder")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="local, slurm, or slurm-local to try it")] = "local",
    engine_options: Annotated[
        str | None, typer.Option(metavar="YAML", help="for submitit, e.g. '{slurm_partition: gpu, timeout_min: 600}'")
    ] = None,
    memory: Memory = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before the work, and show no menu")] = False,
    number: Annotated[int | None, typer.Option("--worker", hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Try methods and settings, and choose from what is best.

    Each trial is a run folder. The objectives are the distance of the forget
    rows to the oracle (or to row targets), in log-prob and entropy, and the harm
    to what is kept. A search that was stopped goes on with --to DIR alone; so
    does another machine.

    \b
    Examples:
      llm-forget search --model MODEL --forget forget.jsonl --retain keep.jsonl \\
        --trials 40 --workers 2
      llm-forget search --to runs/forget-search
    """
    from llm_forget.utils.extras import require_extra

    require_extra("optuna", "the search", "search")
    from llm_forget.trials.search import AIM, Search, read_search

    if workers < 1:
        raise UserError(f"--workers is {workers}; give 1 or more")
    url = storage or os.environ.get(_STORAGE)
    if model is not None and forget is not None:
        order = order_of(
            context.args, model, forget, retain, holdout, neighbours, base=base, oracle=oracle, to=to, memory=memory
        )
        named = None if methods is None else tuple(one.strip() for one in methods.split(",") if one.strip())
        wanted = Search(order, 40 if trials is None else trials, named, seed=seed)
    elif model is None and forget is None and to is not None:
        from dataclasses import replace

        wanted = read_search(Path(to))
        wanted = wanted if trials is None else replace(wanted, trials=trials)
    else:
        raise UserError("a search needs --model and --forget, or --to with the folder of one that was begun")
    until = None if minutes is None else time.time() + 60 * minutes
    if number is not None:
        raise typer.Exit(0 if _work(wanted, url, number, until, workers, echo) else 1)
    _begin(wanted, yes=yes or as_json)
    try:
        if workers == 1 and engine == "local":
            _work(wanted, url, 0, until, 1, (lambda _: None) if as_json else echo)
        else:
            _lead(wanted, url, until, workers, engine, engine_options, quiet=as_json)
    finally:
        if not as_json and wanted.slots(url).finished():
            echo(f"go on, or take part: llm-forget search --to {wanted.folder}")
    if wanted.slots(url).complete:
        (wanted.folder / AIM).unlink(missing_ok=True)
    _end(wanted, wanted.slots(url), menu=not (yes or as_json), as_json=as_json)


def _begin(wanted: Search, *, yes: bool) -> None:
    """Check the order, say what will be tried, ask, and note the settings."""
    from llm_forget.forgetting.work import told, work_for
    from llm_forget.trials.search import Trials

    runs = Trials(wanted)
    if not yes:
        from llm_forget.cli.forget import print_line

        for line in told(work_for(runs.found)):
            if not line.startswith(("writes", "time")):
                print_line(line)
        print_line(f"search      {wanted.trials} trials of {', '.join(runs.space.methods)}; the first is the default")
        print_line(f"writes      {wanted.folder}")
        if sys.stdin.isatty() and sys.stdout.isatty() and not typer.confirm("Go on?", default=True):
            raise typer.Exit(0)
    else:
        runs.space  # noqa: B018 - refuses what cannot be used
    wanted.folder.mkdir(parents=True, exist_ok=True)
    wanted.write()


def _work(wanted: Search, url: str | None, number: int, until: float | None, workers: int, say: Any) -> bool:
    """Run trials in this process's children."""
    from llm_forget.trials.search import Trials, usual_threads
    from llm_forget.trials.worker import work

    runs = Trials(wanted, threads=usual_threads(workers))
    slots = wanted.slots(url, number)
    slots.enqueue([runs.space.first])
    yardstick = runs.common[1]
    slots.study.set_user_attr("start", yardstick.start)
    slots.study.set_user_attr("source", yardstick.source)
    return work(slots, runs, until=until, say=say)


def _lead(
    wanted: Search,
    url: str | None,
    until: float | None,
    workers: int,
    engine: str,
    options: str | None,
    *,
    quiet: bool,
) -> None:
    """Start workers, show what they finish, and end when they have ended."""
    from llm_forget.trials.engines import start
    from llm_forget.utils.safe_yaml import NotPlainYaml, load_yaml

    try:
        given = {} if options is None else load_yaml(options)
    except NotPlainYaml as error:
        raise UserError(f"--engine_options: {error}") from None
    if not isinstance(given, dict):
        raise UserError("--engine_options is no mapping; give for example '{slurm_partition: gpu}'")
    limit = [] if until is None else ["--minutes", f"{max(0.0, until - time.time()) / 60:.2f}"]
    base = ["search", "--to", str(wanted.folder.resolve()), "--trials", str(wanted.trials), *limit]
    shared = workers if engine == "local" else 1  # a job has its own machine
    commands = [[*base, "--workers", str(shared), "--worker", str(place)] for place in range(workers)]
    running = start(engine, commands, wanted.folder, {} if url is None else {_STORAGE: url}, given)
    shown: set[int] = set()
    try:
        slots = wanted.slots(url)
        while running.alive():
            _show_new(slots, shown, quiet)
            time.sleep(_POLL)
        _show_new(slots, shown, quiet)
    except BaseException:
        running.stop()
        raise
    problem = running.problem()
    if problem and not slots.complete:
        raise UserError(f"a worker ended before the search was complete: {problem}")


def _show_new(slots: Slots, shown: set[int], quiet: bool) -> None:
    from llm_forget.cli.front import line_of_trial

    for slot, trial in slots.finished().items():
        if slot not in shown:
            shown.add(slot)
            if not quiet:
                echo(line_of_trial(slot, trial))


def _end(wanted: Search, slots: Slots, *, menu: bool, as_json: bool) -> None:
    from llm_forget.cli.front import Front, show_menu

    found = Front(wanted, slots)
    if as_json:
        print_json(found.as_json())
        return
    found.show()
    if menu and found.places and sys.stdin.isatty() and sys.stdout.isatty():
        show_menu(found)
