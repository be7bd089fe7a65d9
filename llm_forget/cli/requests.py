"""`llm-forget requests`: the ledger of requests to forget."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json, print_table
from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo, say

if TYPE_CHECKING:
    from llm_forget.requests.forgetting import Workshop
    from llm_forget.requests.ledger import Ledger, Measured, Request

requests_app = typer.Typer(
    help="Keep a ledger of requests to forget: what is due, what was forgotten, and whether it stays forgotten.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="the ledger; default: $LLM_FORGET_LEDGER, or requests.sqlite"),
]
_Id = Annotated[str, typer.Argument(metavar="ID", help="id of the request")]
_Batch = Annotated[str, typer.Argument(metavar="BATCH", help="id of the batch")]
_Config = Annotated[str, typer.Option(metavar="FILE", help="recipe of the batches; its forget rows are replaced")]
_Folder = Annotated[Path, typer.Option(metavar="DIR", help="folder of the runs, one for each batch")]
_RUNS = Path("runs/requests")


@contextmanager
def opened(path: Path | None) -> Iterator[Ledger]:
    """The ledger that a command was given, closed at the end."""
    from llm_forget.requests.ledger import Ledger

    ledger = Ledger(path or Path(os.environ.get("LLM_FORGET_LEDGER") or "requests.sqlite"))
    try:
        yield ledger
    finally:
        ledger.close()


@requests_app.command()
def add(
    id: Annotated[str, typer.Option("--id", metavar="ID", help="its id, such as R-17; no person's name")],
    rows: Annotated[Path, typer.Option(metavar="FILE", help="the rows to forget; the file stays where it is")],
    received: Annotated[str | None, typer.Option(metavar="DATE", help="when it came in; default: today")] = None,
    due: Annotated[
        str | None, typer.Option(metavar="DATE", help="answer by; default: one month after --received")
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="YAML", help="names of the columns in --rows")] = None,
    ledger: LedgerFile = None,
) -> None:
    """Add a request. The ledger keeps a salted commitment to its rows and where they are, and no text.

    \b
    Example:
      llm-forget requests add --id R-17 --rows r17.jsonl --received 2026-11-02
    """
    from llm_forget.data.examples import DataSource
    from llm_forget.utils.build import build, with_overrides

    named = with_overrides({}, {} if columns is None else {"columns": columns})
    source = build(DataSource, {"path": str(rows), **named}, "--rows and --columns")
    if not rows.is_file():
        raise UserError(f"{rows} is no file; give the file with the rows of the request")
    with opened(ledger) as found:
        made = found.add(id, source, _day(received) or date.today(), _day(due))
    echo(f"{made.id}: {made.row_count} rows, due {made.due}")


@requests_app.command("list")
def list_(
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help="open, batched, forgotten, returned, answered or withdrawn"),
    ] = None,
    ledger: LedgerFile = None,
    as_json: Json = False,
) -> None:
    """List requests and batches.

    \b
    Example:
      llm-forget requests list --state open
    """
    from llm_forget.requests.batches import batches

    with opened(ledger) as found:
        requests, made = found.requests(*state or ()), batches(found)
    if as_json:
        print_json({"requests": [asdict(one) for one in requests], "batches": [asdict(one) for one in made]})
        return
    _show(requests)
    if made:
        rows = [
            [one.id, one.how, one.state, f"{one.seconds:.0f}" if one.seconds else "–", " ".join(one.requests)]
            for one in made
        ]
        print_table(["batch", "how", "state", "sec.", "requests"], rows)


@requests_app.command()
def due(
    within: Annotated[int, typer.Option(metavar="DAYS", help="also what is due within so many days")] = 7,
    ledger: LedgerFile = None,
    as_json: Json = False,
) -> None:
    """List what must be answered soon, and what came back. Exit status 1: something is overdue or came back.

    \b
    Example:
      llm-forget requests due --within 14
    """
    with opened(ledger) as found:
        waiting = found.due(date.today() + timedelta(days=within))
    late = [one for one in waiting if one.state == "returned" or one.due < date.today().isoformat()]
    if as_json:
        print_json({"due": [asdict(one) for one in waiting], "late": [one.id for one in late]})
    else:
        _show(waiting)
    raise typer.Exit(1 if late else 0)


@requests_app.command()
def status(id: _Id, ledger: LedgerFile = None, as_json: Json = False) -> None:
    """Show one request: its state and everything that happened to it.

    \b
    Example:
      llm-forget requests status R-17
    """
    with opened(ledger) as found:
        request, history = found.request(id), found.history(id)
    if as_json:
        print_json({**asdict(request), "history": history})
        return
    _show([request])
    for one in history:
        echo(f"{one['at']}  {one['what']}{' in ' + one['batch'] if one['batch'] else ''}")


@requests_app.command()
def batch(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID …]", help="requests; default: all that are open")
    ] = None,
    how: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="joint: one adapter for all so far; sequential: on top of the adapter before; stacked: alone, then added",
        ),
    ] = "joint",
    ledger: LedgerFile = None,
) -> None:
    """Put requests into a batch, to be forgotten together.

    \b
    Example:
      llm-forget requests batch R-17 R-18 --how joint
    """
    from llm_forget.requests.batches import plan

    with opened(ledger) as found:
        made = plan(found, ids or (), how)
    echo(f"{made.id}: {', '.join(made.requests)} ({made.how})")


@requests_app.command()
def forget(
    batch: _Batch,
    config: _Config,
    folder: _Folder = _RUNS,
    keep: Annotated[
        bool, typer.Option("--keep", help="serve the adapter even if an earlier request came back")
    ] = False,
    ledger: LedgerFile = None,
) -> None:
    """Forget a batch, and test that all earlier requests stay forgotten.

    If an earlier request came back, or the batch is not forgotten, the batch is rejected and the exit status is 1. After an
    interruption, the same command goes on.

    \b
    Example:
      llm-forget requests forget B-0001 --config mine.yaml
    """
    from llm_forget.requests.forgetting import forget_batch

    with opened(ledger) as found:
        done = forget_batch(_workshop(found, config, folder), batch, keep=keep)
        tests = found.tests_of(done.id)
    _show_tests(tests)
    echo(f"{done.id}: {done.state}, {folder / done.id}")
    if done.state != "done":
        echo("another way may keep them: plan the batch again with --how joint, or change the recipe")
        raise typer.Exit(1)


@requests_app.command()
def reject(batch: _Batch, ledger: LedgerFile = None) -> None:
    """Give up a batch that was planned or interrupted. Its requests are open again.

    \b
    Example:
      llm-forget requests reject B-0001
    """
    from llm_forget.requests.batches import reject

    with opened(ledger) as found:
        done = reject(found, batch)
    echo(f"{done.id}: {done.state}, open again: {', '.join(done.requests)}")


@requests_app.command()
def retest(config: _Config, folder: _Folder = _RUNS, ledger: LedgerFile = None, as_json: Json = False) -> None:
    """Test all forgotten requests with the adapter that is served now. Exit status 1: one came back.

    \b
    Example:
      llm-forget requests retest --config mine.yaml
    """
    from llm_forget.requests.forgetting import retest

    with opened(ledger) as found:
        tests = retest(_workshop(found, config, folder))
    if as_json:
        print_json([asdict(one) for one in tests])
    else:
        _show_tests(tests)
    raise typer.Exit(1 if any(one.verdict == "returned" for one in tests) else 0)


@requests_app.command()
def answer(
    id: _Id,
    statement: Annotated[
        Path, typer.Option(metavar="RUN", help="run folder with the certificate that names the request")
    ],
    key: Annotated[Path, typer.Option(metavar="FILE", help="public key of the signer")],
    ledger: LedgerFile = None,
) -> None:
    """Record that a request was answered with a certificate, which is verified first.

    \b
    Example:
      llm-forget requests answer R-17 --statement runs/requests/B-0001 \\
        --key office.key.pub
    """
    from llm_forget.certificates.envelope import read_envelope
    from llm_forget.certificates.keys import load_public
    from llm_forget.certificates.verify import statement_file, verify

    report = verify(statement, [load_public(key)])
    if not report.accepted or report.statement is None:
        failed = next((one.text for one in report.checks if one.ok is False), "")
        raise UserError(f"{statement} has no certificate that holds: {failed}")
    named = [one["id"] for one in report.statement["predicate"]["requests"]]
    if id not in named:
        raise UserError(f"the certificate is about {', '.join(named)}, not about {id}")
    digest = read_envelope(statement_file(statement).read_bytes().removesuffix(b"\n")).digest
    with opened(ledger) as found:
        new = found.answer(id, digest)
    echo(f"{id}: answered with the statement {digest[:12]}" + ("" if new else " already"))


@requests_app.command()
def withdraw(id: _Id, ledger: LedgerFile = None) -> None:
    """Withdraw a request that nothing was done about.

    \b
    Example:
      llm-forget requests withdraw R-17
    """
    with opened(ledger) as found:
        found.withdraw(id)
    echo(f"{id}: withdrawn")


@requests_app.command()
def export(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="file to write; default: standard output")
    ] = None,
    ledger: LedgerFile = None,
) -> None:
    """Write the whole ledger as JSON, without salts and without the places of rows.

    \b
    Example:
      llm-forget requests export --to ledger.json
    """
    from llm_forget.utils.files import write_record

    with opened(ledger) as found:
        content = found.export()
    if to is None:
        print_json(content)
        return
    write_record(to, content)
    echo(to)


def _workshop(found: Ledger, config: str, folder: Path) -> Workshop:
    from rich.console import Console

    from llm_forget.config import UnlearnRecipe
    from llm_forget.requests.forgetting import Workshop
    from llm_forget.utils.build import load_recipe

    console = Console(stderr=True)
    return Workshop(found, load_recipe(UnlearnRecipe, config, {}), folder, lambda line: say(console, line), console)


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text} is no date; write YYYY-MM-DD") from None


def _show(found: list[Request]) -> None:
    rows: list[list[Any]] = [
        [one.id, one.state, one.received, one.due, str(one.row_count), one.root[:12]] for one in found
    ]
    print_table(["request", "state", "received", "due", "rows", "commitment"], rows)


def _show_tests(tests: list[Measured]) -> None:
    rows = [
        [one.request, f"{one.before:.3f}", f"{one.value:.3f}", f"[{one.low:.3f}, {one.high:.3f}]", one.verdict]
        for one in tests
    ]
    print_table(["request", "before", "now", "95 % interval", "verdict"], rows)
