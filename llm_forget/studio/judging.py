"""The screen Audit: the matrix of attacks and forms as a heat map; a cell says what was tried."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from llm_forget.auditing.matrix import Cell
from llm_forget.auditing.results import StoredAudit, read_audit
from llm_forget.errors import UserError
from llm_forget.report.audit import audit_table, forecast_lines
from llm_forget.studio.desk import Desk
from llm_forget.studio.jobs import command_line
from llm_forget.studio.view import act, command_box, empty, folded, listed, of_table, say, text, words

_NOTHING = "There is no finished run. The screens Find and Plan start one."
_NOT_YET = (
    "This run was not audited. Press “Screening” for the quick attacks, or “All attacks”; the screen Run shows the job."
)
_PRESS = """element.addEventListener('click', event => {
  const cell = event.target.closest('button[data-cell]');
  if (cell) trigger('input', {cell: cell.dataset.cell});
});"""


def audit_screen(desk: Desk, tab: Any) -> None:
    """Build the screen."""
    gr.Markdown("## Audit: does it stay forgotten?")
    run = gr.Dropdown([], label="Run")
    with gr.Row():
        quick = gr.Button("Screening")
        whole = gr.Button("All attacks")
    message = words()
    shown = words(empty(_NOTHING), js_on_load=_PRESS)
    cell = words()
    box = command_box()

    def look(name: str | None) -> Any:
        runs, kept = desk.runs(name)
        return runs, *show(kept)

    def show(name: str | None) -> tuple[str, str, str]:
        if not name:
            return empty(_NOTHING), "", ""
        found = read_audit(desk.run(name).path)
        return (empty(_NOT_YET) if found is None else _matrix(found)), "", command_line(["audit", name])

    def pressed(name: str, event: gr.EventData) -> str:
        found = read_audit(desk.run(name).path)
        attack, _, form = str(getattr(event, "cell", "")).partition("|")
        one = None if found is None else found.cell(attack, form)
        if found is None or one is None:
            raise UserError("this cell is gone; the audit has changed")
        return _cell(one)

    def begin(name: str, *options: str) -> Any:
        desk.run(name)
        argv = ["audit", name, *options]
        return desk.jobs.start(argv, name).id, command_line(argv)

    act(tab.select, look, [run], [run, shown, cell, box], message)
    act(run.input, show, [run], [shown, cell, box], message)
    act(shown.input, pressed, [run], [cell], message)
    act(quick.click, lambda name: begin(name, "--quick"), [run], [desk.started, box], message)
    act(whole.click, begin, [run], [desk.started, box], message)


def _matrix(found: StoredAudit) -> str:
    grade, made = found.grade, audit_table(found)

    def pressable(row: int, column: int, one: str) -> str:
        if column < 2 or not made.rows[row][column].text:
            return one
        name = html.escape(f"{made.rows[row][0].text}|{made.head[column]}")
        label = text(f"{made.rows[row][0].text} on {made.head[column]}: {made.rows[row][column].text or 'not run'}")
        return f'<button type="button" data-cell="{name}" aria-label="{label}">{one}</button>'

    level = f"Grade {grade.level}: {grade.words}" if grade.level else grade.words.capitalize()
    parts = [f"<h3>{text(level)}</h3>", say(f"The audit {found.problem}.", "alert") if found.problem else ""]
    parts.append(of_table(made, pressable))
    parts += [
        folded("Broken by", grade.broken_by), folded("Next", (grade.next_step,) if grade.next_step else ()),
        folded("Forecast from the files alone", forecast_lines(found)), folded("Tried", grade.tried),
        folded("Not tried", grade.not_tried), folded("This does not show", grade.does_not_show),
    ]  # fmt: skip
    return "".join(parts)


def _cell(one: Cell) -> str:
    """What was tried in a cell and what came out."""
    facts: list[tuple[str, object]] = [
        ("attack", f"{one.attack} ({one.group})"), ("form", one.form), ("answer", one.answer),
        ("score", _number(one.value, one.low, one.high)), *((role, _number(value)) for role, value in one.controls.items()),
        ("share left (R)", _number(one.left, one.left_low, one.left_high)), ("p-value", _number(one.p)), ("rows", one.rows or ""),
        ("chosen by the attacker", ", ".join(f"{key} {value}" for key, value in one.chosen.items())), ("why not", one.why),
    ]  # fmt: skip
    return f'<div role="status">{listed([pair for pair in facts if pair[1] != ""])}</div>'


def _number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return "" if value is None else f"{value:.3g}{ends}" if 0 < abs(value) < 0.001 else f"{value:.3f}{ends}"
