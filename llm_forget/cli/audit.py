"""`llm-forget audit`: does it stay forgotten?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json, print_table, print_wrapped, say_notes
from llm_forget.errors import LaunchError, UserError
from llm_forget.utils.terminal import echo, say

if TYPE_CHECKING:
    from llm_forget.auditing.results import StoredAudit

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="run folder, or a model folder")]
_File = typer.Option(metavar="FILE", help="rows to use instead of those in the run's recipe")


def audit(
    run: _Run,
    target: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="the model before unlearning; default: found next to the run folder"),
    ] = None,
    oracle: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="a model that never saw the forget set; default: found next to the run folder"
        ),
    ] = None,
    sham: Annotated[Path | None, typer.Option(metavar="RUN", help="the same recipe run on other rows")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a screening: the quick attacks, two forms, fewer rows")
    ] = False,
    attacks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="comma-separated attacks, or paths of your own; default: all")
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="comma-separated forms, the served one first, or all; default: the usual"),
    ] = None,
    forget: Annotated[Path | None, _File] = None,
    holdout: Annotated[Path | None, _File] = None,
    retain: Annotated[Path | None, _File] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", help="most rows of each set [40; 20 with --quick]")] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the model that the adapter was trained on, if it has moved")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="attack the model behind this OpenAI-compatible server")
    ] = None,
    served_model: Annotated[str | None, typer.Option(metavar="NAME", help="its name on that server")] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="environment variable with the server's key")
    ] = "OPENAI_API_KEY",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="folder for the result; default: audit in the run folder")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="seed of everything random")] = 0,
    jobs: Annotated[int, typer.Option(metavar="N", help="processes; each holds one model")] = 1,
    as_json: Json = False,
) -> None:
    """Attack a run in every form in which it may be served.

    Each attack also runs on the target, the oracle and a sham. An audit that was
    stopped goes on where it ended; target and oracle are attacked once for all
    runs. Files hold ids and numbers, no text of the data.

    \b
    Examples:
      llm-forget audit runs/npo --quick
      llm-forget audit runs/npo --forms merged_bf16,nf4 --attacks greedy,prefill
      llm-forget audit runs/npo --endpoint http://localhost:8000 --served-model npo
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError("an audit is one process; launch it with --num_processes 1, and give --jobs 2 to use two")
    if (endpoint is None) != (served_model is None):
        raise UserError("--endpoint and --served-model belong together; give both, or neither")
    if rows is not None and rows < 2:
        raise UserError(f"--rows is {rows}; give 2 or more")
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; give 1 or more")
    settings = {
        "quick": quick,
        "attacks": _names(attacks),
        "forms": _names(forms),
        "rows": rows,
        "seed": seed,
        "jobs": jobs,
    }
    given = {"forget": forget, "holdout": holdout, "retain": retain}
    controls = {"target": target, "oracle": oracle, "sham": sham}
    found = run_audit(run, controls, given, settings, base, (endpoint, served_model, key_variable), to)
    if as_json:
        print_json(found.raw)
        return
    show(found)


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(one.strip() for one in given.split(",") if one.strip())


def run_audit(
    run: Path,
    controls: dict[str, Path | None],
    given: dict[str, Path | None],
    settings: dict[str, Any],
    base: Path | None,
    server: tuple[str | None, str | None, str],
    to: Path | None,
) -> StoredAudit:
    """Find the models and rows of an audit, and run it."""
    from rich.console import Console

    from llm_forget.auditing.audit import AuditSettings, audit_run, find_models, read_rows
    from llm_forget.auditing.endpoint import ServedSubject
    from llm_forget.auditing.results import FOLDER_NAME, read_audit
    from llm_forget.data.examples import DataSource
    from llm_forget.utils.endpoint import Endpoint

    console = Console(stderr=True)
    found = {**_nearby(run, controls), **{role: path for role, path in controls.items() if path is not None}}
    models = find_models(run, **found, base=None if base is None else str(base))
    notes: list[str] = []
    chosen = AuditSettings(**settings)
    sources = {name: None if path is None else DataSource(str(path)) for name, path in given.items()}
    data = read_rows(models, chosen.most_rows, sources, notes)
    if models.oracle is None:
        notes.append("there is no oracle, so no cell can be judged: give the run of one with --oracle")
    say_notes(notes)
    output = to or run / FOLDER_NAME
    url, name, variable = server
    served = None
    if url is not None and name is not None:
        server_model = Endpoint(url, name, variable)

        def served(tokenizer: Any, form: Any) -> Any:
            return ServedSubject(server_model, tokenizer, models.encoding, form)

    audit_run(
        models,
        data,
        chosen,
        output=output,
        say=lambda line: say(console, line),
        served=served,
        served_name="" if url is None else f"{name} at {url}",
        notes=notes,
    )
    stored = read_audit(run, output)
    if stored is None:
        raise UserError(f"{output}: the result cannot be read; run the audit again")
    return stored


def _nearby(run: Path, controls: dict[str, Path | None]) -> dict[str, Path]:
    """Target and oracle among the folders next to a run, as reports find them."""
    if all(controls[role] is not None for role in ("target", "oracle")) or (run / "config.json").is_file():
        return {}
    from llm_forget.report.comparison import load_around

    around = load_around(run, controls["target"], controls["oracle"])
    runs = {role: around.run(getattr(around, role)) for role in ("target", "oracle")}
    usable = {role: one.path for role, one in runs.items() if one is not None}
    return {role: path for role, path in usable.items() if (path / "model").is_dir() or (path / "adapter").is_dir()}


def show(found: StoredAudit) -> None:
    """Print the matrix and the grade."""
    from llm_forget.report.audit import audit_table, forecast_lines, legend

    table = audit_table(found)
    left_out = print_table(table.head, [[cell.text for cell in row] for row in table.rows])
    if left_out:
        echo(f"{left_out} forms do not fit this terminal; --json and the report have all of them")
    echo(legend())
    grade = found.grade
    print_wrapped(f"Grade: {grade.level or 'none'}, {grade.words}" if grade.level else f"Grade: {grade.words}")
    for title, lines in (
        ("Broken by", grade.broken_by[:8]),
        ("Next", (grade.next_step,) if grade.next_step else ()),
        ("Forecast from the files alone", forecast_lines(found)),
        ("Tried", grade.tried),
        ("Not tried", grade.not_tried),
        ("This does not show", grade.does_not_show),
    ):
        if lines:
            echo(f"{title}:")
        for line in lines:
            print_wrapped(f"  - {line}")
    if found.problem:
        from rich.console import Console

        say(Console(stderr=True), f"the audit {found.problem}", label="note")
