"""`llm-forget certify` and `llm-forget verify`: statements about runs that others can check."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.cli.keys import PassphraseFile, passphrase
from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo

if TYPE_CHECKING:
    from llm_forget.certificates.verify import Check, Report
    from llm_forget.runs import Run as LoadedRun

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]
_Chain = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="the signer's chain of statements; default: statements.jsonl next to the run"),
]
_MARKS = {True: "ok     ", False: "FAILED ", None: "–      "}


def certify(
    run: _Run,
    key: Annotated[Path, typer.Option(metavar="FILE", help="private key, from `llm-forget keys new`")],
    request: Annotated[list[str], typer.Option(metavar="ID", help="id of the request, no person's name; repeatable")],
    received: Annotated[
        list[str] | None, typer.Option(metavar="DATE", help="date of the request, YYYY-MM-DD; one for each --request")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the base; default: the one in the run's recipe")
    ] = None,
    merged: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the base with the adapter merged into it, if you serve that")
    ] = None,
    forget: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="rows to forget; default: the file in the run's recipe; repeatable"),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="run of the model before unlearning; default: found next to RUN, if measured alike"
        ),
    ] = None,
    oracle: Annotated[
        Path | None, typer.Option(metavar="RUN", help="run of a model that never saw the rows; default: likewise")
    ] = None,
    sham: Annotated[Path | None, typer.Option(metavar="RUN", help="the same recipe run on other rows")] = None,
    chain: _Chain = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Sign a statement about a run: what was forgotten, how, and what was measured and attacked.

    The statement is an in-toto statement in a DSSE envelope. It names the files by digests, commits to the rows without
    revealing them, and names the statement before it. Two pages go with it: one for the person concerned, one for the auditor.
    RUN.<root>.openings.json opens the commitment: keep it as private as the rows.

    \b
    Example:
      llm-forget certify runs/mine --key office.key --request R-17 \\
        --received 2026-11-02
    """
    from llm_forget.certificates.certify import Given, certify
    from llm_forget.certificates.keys import is_encrypted, load_private
    from llm_forget.data.examples import DataSource

    secret = passphrase(passphrase_file) if is_encrypted(key) else None
    signer = load_private(key, secret)
    controls = {role: path for role, path in (("target", target), ("oracle", oracle), ("sham", sham)) if path}
    made = certify(
        run,
        signer,
        Given(
            requests_of(request, received or []),
            base=base,
            merged=merged,
            forget=[DataSource(str(path)) for path in forget or ()],
            controls=_nearby(run, controls),
            chain=chain,
        ),
    )
    if as_json:
        print_json({"statement": str(made.folder), "sha256": made.envelope.digest, "openings": str(made.openings)})
        return
    audit = made.statement["predicate"]["audit"]
    grade = "no attacks were run" if audit is None else f"grade {audit['grade']['level'] or 'none'}"
    echo(f"{made.folder}: statement {made.envelope.digest[:12]}, {grade}")
    echo(f"{made.openings}: opens the commitment to the rows; keep it private")


def requests_of(ids: list[str], dates: list[str]) -> list[Any]:
    """The requests of a statement.

    Raises:
        UserError: an id is empty or too long, or a date is none.
    """
    from datetime import date

    from llm_forget.certificates.statement import Request

    if dates and len(dates) != len(ids):
        raise UserError(f"{len(dates)} dates for {len(ids)} requests; give one --received for each --request, or none")
    for one in dates:
        try:
            date.fromisoformat(one)
        except ValueError:
            raise UserError(f"--received {one} is no date; write YYYY-MM-DD") from None
    if wrong := [one for one in ids if not 0 < len(one.strip()) <= 100]:
        raise UserError(f"--request {wrong[0][:20]!r} is empty or long; give an id such as R-17")
    return [Request(one, dates[place] if dates else None) for place, one in enumerate(ids)]


def _nearby(run: Path, given: dict[str, Path]) -> dict[str, Path]:
    """Target and oracle among the folders next to a run, as reports find them, if they were measured on its suites."""
    from llm_forget.report.comparison import load_around

    if {"target", "oracle"} <= given.keys():
        return given
    around = load_around(run, given.get("target"), given.get("oracle"))
    for role in ("target", "oracle"):
        other = around.run(getattr(around, role))
        if role not in given and other is not None and _comparable(around.runs[0], other):
            given = {**given, role: other.path}
    return given


def _comparable(own: LoadedRun, other: LoadedRun) -> bool:
    """Whether a run that was found, not named, is undamaged and was measured on the same forget sets."""
    from llm_forget.evaluation.compare import same_set

    pairs = [(one, other.evaluations[name]) for name, one in own.evaluations.items() if name in other.evaluations]
    return not other.problems and any(
        one.forget_sets and all(same_set(one.raw, found.raw, name) for name in one.forget_sets) for one, found in pairs
    )


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, or the certificate in it")],
    key: Annotated[
        list[Path], typer.Option(metavar="FILE", help="public key of the signer, which you trust; repeatable")
    ],
    chain: _Chain = None,
    base: Annotated[Path | None, typer.Option(metavar="DIR", help="check the base's files too")] = None,
    merged: Annotated[Path | None, typer.Option(metavar="DIR", help="check the merged model's files too")] = None,
    row: Annotated[
        Path | None, typer.Option(metavar="FILE", help="show that the rows of this file were covered")
    ] = None,
    openings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--row: openings or proof; default: next to the run")
    ] = None,
    write_proof: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--row: write the proof for one row, for the person concerned")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="measure a random share of the rows again, such as 5%; needs --base"),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="--replay: file or name of the suite; default: as it was named")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="--replay: folder with the suite's data")] = None,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="--replay: dtype of the evaluation")] = "auto",
    seed: Annotated[int | None, typer.Option(metavar="N", help="--replay: seed of the rows; default: random")] = None,
    as_json: Json = False,
) -> None:
    """Check a certificate, offline: signature, chain, files, and figures from scores.

    Exit status: 0 accepted, 1 not accepted, 2 nothing to check.

    \b
    Examples:
      llm-forget verify runs/mine --key office.key.pub
      llm-forget verify runs/mine --key office.key.pub --row my_row.jsonl --openings proof.json
      llm-forget verify runs/mine --key office.key.pub --base MODEL --replay 5%
    """
    from llm_forget.certificates.keys import load_public
    from llm_forget.certificates.verify import Places, Report, statement_file, verify

    share = None if replay is None else share_of(replay)
    if share is not None and base is None:
        raise UserError("--replay measures the model again, so it needs --base, the folder of the base")
    if row is None and (openings or write_proof):
        raise UserError("--openings and --write-proof belong to --row; give the file with the rows")
    report = verify(run, [load_public(one) for one in key], Places(base, merged, chain))
    if row is not None:
        report = Report(
            (*report.checks, _row(report, row, openings, statement_file(run), write_proof)), report.statement
        )
    if share is not None and base is not None and report.accepted:
        from llm_forget.certificates.replay import Slice
        from llm_forget.certificates.replay import replay as again

        chosen = secrets.randbelow(1 << 31) if seed is None else seed
        checks = again(statement_file(run).parent.parent, base, Slice(share, chosen, suite, data_dir, dtype))
        report = Report((*report.checks, *checks), report.statement)
    _show(report, as_json=as_json)
    raise typer.Exit(0 if report.accepted else 1)


def share_of(text: str) -> float:
    """A share given as 5% or 0.05.

    Raises:
        UserError: it is none.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"--replay {text} is no share; give one above 0 and at most 1, such as 5% or 0.05")
    return value


def _row(report: Report, row: Path, openings: Path | None, statement: Path, write_proof: Path | None) -> Check:
    from llm_forget.certificates.canonical import canonical
    from llm_forget.certificates.keys import write_private
    from llm_forget.certificates.merkle import row_bytes
    from llm_forget.certificates.verify import Check, check_row
    from llm_forget.data.examples import DataSource, read_examples

    folder = statement.parent.parent
    if openings is None and report.statement is not None:
        root = str(report.statement["predicate"]["rows"].get("root"))
        openings = folder.with_name(f"{folder.name}.{root[:12]}.openings.json")
    if openings is None or not openings.is_file():
        return Check("row", False, f"{openings} does not exist; give the openings or the proof with --openings")
    check, proof = check_row(report, [row_bytes(one) for one in read_examples(DataSource(str(row)))], openings)
    if write_proof is not None:
        if proof is None:
            raise UserError(f"--write-proof needs one row that is covered; {check.text}")
        write_private(write_proof, canonical(proof.as_dict()) + b"\n")
    return check


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        checks = [{"check": one.name, "ok": one.ok, "text": one.text} for one in report.checks]
        print_json({"accepted": report.accepted, "checks": checks})
        return
    for one in report.checks:
        echo(f"{_MARKS[one.ok]} {one.name}: {one.text}")
    echo("accepted" if report.accepted else "NOT accepted")
