"""Carry out an order: unlearn, measure, audit and report. What is done is not done again."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_forget.adapters.card import vllm_rank
from llm_forget.auditing.audit import AuditSettings, audit_run, find_models, read_rows
from llm_forget.auditing.results import FOLDER_NAME, read_audit
from llm_forget.data.examples import DataSource
from llm_forget.errors import RecipeError, UserError
from llm_forget.forgetting.bars import Bar, bars, headline
from llm_forget.forgetting.found import look
from llm_forget.forgetting.measuring import measure
from llm_forget.forgetting.order import Order
from llm_forget.forgetting.work import Work, work_for
from llm_forget.report.comparison import load_around
from llm_forget.report.page import write_report_of
from llm_forget.train.run_folder import RESULT_NAME
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.files import write_json
from llm_forget.utils.output import writing
from llm_forget.utils.safe_json import NotPlainJson, read_json
from llm_forget.utils.terminal import say

ORDER_NAME = "order.json"


@dataclass(frozen=True)
class Forgotten:
    """The outcome of an order.

    Attributes:
        headline: one line: forgotten or not, and what was missed.
        reached: whether every bar that could be measured was reached.
        bars: each bar with what was found.
        folder: the folder of the order.
        run: the run folder, with recipe, adapter, results, audit and report.
        adapter: the adapter; None if all weights were trained.
        record: the content of ``result.json``.
        grade: the audit's grade in words; None without an audit.
        report: the HTML report; None if its packages are not installed.
        serve: commands that use the result.
        notes: what was left out, and why.
    """

    headline: str
    reached: bool
    bars: list[Bar]
    folder: Path
    run: Path
    adapter: Path | None
    record: Mapping[str, Any] = field(repr=False)
    grade: str | None
    report: Path | None
    serve: list[str] = field(repr=False)
    notes: list[str] = field(default_factory=list, repr=False)


def forget(
    model: str | Path,
    forget: str | Path,
    *,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    neighbours: str | Path | None = None,
    base: str | Path | None = None,
    oracle: str | Path | None = None,
    to: str | Path | None = None,
    audit: bool = True,
    overwrite: bool = False,
    console: Console | None = None,
    **changes: Any,
) -> Forgotten:
    """Unlearn rows from a model by the default, measure it, audit it and write a report, as ``llm-forget forget`` does.

    An order that was interrupted goes on where it ended. For a loaded model and rows in memory there are ``unlearn`` and
    ``evaluate``.

    Args:
        model: folder or hub id of the model that knows the rows.
        forget: file of the rows to forget.
        retain: rows to keep; without them the model itself supplies some.
        holdout: rows like the forget rows that no model was trained on.
        neighbours: rows to keep that are measured only.
        base: the model before it learned the rows.
        oracle: a model that never saw the rows, or its run folder.
        to: folder to write; ``runs/`` and the name of the forget file by default.
        audit: attack the result in a screening.
        overwrite: replace what another order left in the folder.
        console: for progress; standard error by default.
        changes: fields of a recipe, for example ``seed=1`` or ``encoding={"system_prompt": ""}``.

    Raises:
        UserError: something that was given cannot be used.
    """
    given = {"retain": retain, "holdout": holdout, "neighbours": neighbours, "base": base, "oracle": oracle, "to": to}
    paths: dict[str, Any] = {name: None if value is None else str(value) for name, value in given.items()}
    order = Order(str(model), str(forget), changes=changes, **paths)
    return carry_out(work_for(look(order)), audit=audit, overwrite=overwrite, console=console)


def carry_out(work: Work, *, audit: bool = True, overwrite: bool = False, console: Console | None = None) -> Forgotten:
    """Carry out planned work.

    Raises:
        UserError: the folder holds another order, or something cannot be used.
    """
    console = console or Console(stderr=True)
    order = work.found.order
    notes: list[str] = []
    with writing(order.folder, "--to", shared=True):
        _claim(order, overwrite)
        record = _unlearned(work, overwrite, console)
        results = measure(work.found, console)
        grade = _audited(work, console, notes) if audit else None
        report = _reported(order.run, notes)
    found = bars(
        results["model"],
        target=results["target"],
        oracle=results.get("oracle"),
        reached=record["reached"],
        known=record["known_before"],
    )
    line, reached = headline(found, record["known_before"])
    adapter = order.run / "adapter" if work.recipe.adapter is not None else None
    serve = _serve(order, work.recipe.model.name, adapter, work)
    return Forgotten(line, reached, found, order.folder, order.run, adapter, record, grade, report, serve, notes)


def _claim(order: Order, overwrite: bool) -> None:
    """Note the order in its folder, or check that the folder is this order's."""
    file, mine = order.folder / ORDER_NAME, json.loads(json.dumps(order.identity()))
    if file.is_file():
        try:
            before = read_json(file)
        except NotPlainJson:
            before = None
        if before == mine:
            return
        if not overwrite:
            changed = [
                name for name, value in mine.items() if not isinstance(before, dict) or before.get(name) != value
            ]
            raise RecipeError(
                f"{order.folder} holds another order (it differs in {', '.join(changed)}); give another folder with --to, or "
                "--overwrite to replace it"
            )
    elif order.run.exists() and not overwrite:
        raise RecipeError(f"{order.run} exists and is no order's; give another folder with --to")
    for role in ("target", "oracle"):
        for stale in (order.folder / role / "eval").glob("custom*"):
            stale.unlink()
    write_json(file, mine)


def _unlearned(work: Work, overwrite: bool, console: Console) -> dict[str, Any]:
    file = work.found.order.run / RESULT_NAME
    if overwrite or not file.is_file():
        unlearn(replace(work.recipe, overwrite=overwrite, resume=not overwrite), console, lenient=True)
        gc.collect()
    found = read_json(file)
    if not isinstance(found, dict):
        raise RecipeError(f"{file} is damaged; remove {work.found.order.run}, and run the same command again")
    return found


def _audited(work: Work, console: Console, notes: list[str]) -> str | None:
    """The grade of a screening."""
    order = work.found.order
    oracle = Path(order.oracle) if order.oracle is not None and Path(order.oracle).is_dir() else None
    if oracle is not None and (oracle / "model").is_dir() and not (oracle / RESULT_NAME).is_file():
        oracle = oracle / "model"
    try:
        models = find_models(order.run, oracle=oracle)
        rows = read_rows(models, AuditSettings(quick=True).most_rows, _sources(order), notes)
        audit_run(
            models,
            rows,
            AuditSettings(quick=True),
            output=order.run / FOLDER_NAME,
            say=lambda line: say(console, line),
            notes=[] if oracle is not None else ["there is no oracle, so no cell can be judged"],
        )
    except UserError as error:  # for example a form that needs a package; the result stands without the audit
        notes.append(f"no audit: {error}")
        return None
    stored = read_audit(order.run)
    if stored is None:
        return None
    return f"{stored.grade.level}, {stored.grade.words}" if stored.grade.level else stored.grade.words


def _sources(order: Order) -> dict[str, DataSource | None]:
    paths = {"forget": order.forget, "holdout": order.holdout, "retain": order.retain}
    return {name: None if path is None else DataSource(path) for name, path in paths.items()}


def _reported(run: Path, notes: list[str]) -> Path | None:
    try:
        return write_report_of(load_around(run), run / "report.html")
    except UserError as error:
        notes.append(f"no report: {error}")
        return None


def _serve(order: Order, model: str, adapter: Path | None, work: Work) -> list[str]:
    if adapter is None:
        return [f"vllm serve {order.run / 'model'}"]
    rank = work.recipe.adapter.rank if work.recipe.adapter is not None else 16
    return [
        f"llm-forget chat {order.run}",
        f"vllm serve {model} --enable-lora --max-lora-rank {vllm_rank(rank) or rank} --lora-modules forgotten={adapter}",
        f"llm-forget merge --base {model} --adapter {adapter} --to {order.folder / 'merged'}",
        f"llm-forget audit {order.run}",
    ]
