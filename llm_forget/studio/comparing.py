"""The screen Compare: all runs in one plot, and one run's rows and answers before and after."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import RUN
from llm_forget.report import plots
from llm_forget.report.comparison import load_around, load_comparison
from llm_forget.report.examples import example_table
from llm_forget.report.tables import Table, metric_table
from llm_forget.studio.desk import Desk
from llm_forget.studio.jobs import command_line, result_of
from llm_forget.studio.view import act, command_box, empty, folded, link, of_table, say, table, text, words

_NOTHING = "There is no finished run. The screens Find and Plan start one."
_HIDDEN = "Text is hidden: “Show text” above shows it in this browser. A row is named by the start of a digest."
_ANSWERS = "Answers of the models are not kept with a run: ask both below."
_CHOOSE = "Choose a run, or press its point in the plot."
# Plotly tells its own element which point was pressed; the name is passed on to the list of runs.
_PRESSED = """setInterval(() => {
  const plot = document.querySelector('#trade .js-plotly-plot');
  if (!plot || plot.dataset.heard) return;
  plot.dataset.heard = '1';
  plot.on('plotly_click', event => trigger('input', {run: event.points[0].customdata}));
}, 1000);"""


def compare_screen(desk: Desk, tab: Any) -> None:
    """Build the screen."""
    gr.Markdown("## Compare")
    plot = gr.Plot(label="Forgetting and utility of all runs", visible=False, elem_id="trade")
    ear = words("", js_on_load=_PRESSED)
    message = words()
    run = gr.Radio([], label="Run", visible=False)
    shown = words(empty("Reading the runs …"))
    with gr.Row(visible=False) as asking:
        question = gr.Textbox(label="Ask the model before and after", scale=3)
        ask = gr.Button("Ask", scale=1)
    answers = words()
    box = command_box()

    def look(chosen: str | None) -> Any:
        names = desk.place.list_runs()
        if not names:
            hidden = gr.update(visible=False)
            return hidden, gr.update(visible=False, choices=[]), empty(_NOTHING), hidden, ""
        found = load_comparison([desk.place.root / "runs"])
        axes = plots.metrics_to_plot(found.frame)
        frame = found.frame.rename(index=lambda one: str(one).removesuffix(f"/{RUN}").replace("/", " "))
        frame.attrs = found.frame.attrs
        figure = None if axes is None else plots.forget_vs_utility(frame, forget=axes[0], utility=axes[1])
        plotted = gr.update(value=figure, visible=figure is not None)
        line = command_line(["compare", "runs"])
        told = gr.skip() if chosen else empty(_CHOOSE)
        return plotted, gr.update(choices=names, visible=True), told, gr.update(visible=True), line

    def choose(name: str | None, unlocked: bool) -> str:
        return _one(desk, name, unlocked) if name else empty(_CHOOSE if desk.place.list_runs() else _NOTHING)

    def pressed(event: gr.EventData) -> str:
        pressed = f"runs/{getattr(event, 'run', '')}"
        name = next((one for one in desk.place.list_runs() if one in (pressed, f"{pressed}/{RUN}")), None)
        if name is None:
            raise UserError("that point is no run of the list: a target or an oracle has no before and after")
        return name

    def asked(name: str, given: str, unlocked: bool) -> tuple[str, str]:
        if not unlocked:
            raise UserError("answers may hold what is to be forgotten: press “Show text” first")
        if not (given or "").strip():
            raise UserError("write a question")
        desk.run(name)
        line = " ".join(given.split())
        (said,) = json.loads(result_of(desk.place, ["chat", name, "--json"], asked=f"{line}\n"))
        rows = [[text(line), text(said["before"]), text(said["after"])]]
        told = table(["question", "before", "after"], rows, "Greedy answers")
        return told, command_line(["chat", name, "-q", "QUESTION"])

    act(tab.select, look, [run], [plot, run, shown, asking, box], message)
    act(run.change, choose, [run, desk.unlocked], [shown], message, slow=True)
    act(ear.input, pressed, None, [run], message)
    act(desk.unlocked.change, choose, [run, desk.unlocked], [shown], message)
    act(desk.unlocked.change, lambda: "", None, [answers])
    for event in (ask.click, question.submit):
        act(event, asked, [run, question, desk.unlocked], [answers, box], message, slow=True)


def _one(desk: Desk, name: str, unlocked: bool) -> str:
    """The verdict, the metrics and every row of one run."""
    desk.run(name)
    found = load_around(desk.place.root / name)
    run = found.runs[0]
    before = found.run(found.target)
    verdict = found.verdict(run)
    changes = None if before is None or before.name == run.name else found.changes()
    metrics = metric_table(found.frame, changes, run.name, before.name if before else None, found.oracle)
    data, note = [], ""
    if unlocked:
        try:
            data = [str(desk.place.inside(desk.place.named_in_run(run.recipe["data"]["forget"]["path"])))]
        except (KeyError, TypeError, UserError):
            note = say("The questions cannot be shown: the run's rows are not inside the studio's folder.")
    rows = example_table(run, before, data=data, redact=not unlocked)
    head = f"<h3>{text(verdict.headline)}</h3><p>{link(f'report/{name}', 'Open the report')}</p>{note}"
    shown = "" if rows is None else of_table(_text_first(replace(rows, note=_ANSWERS if unlocked else _HIDDEN)))
    numbers = f"<details><summary>Every number</summary>{of_table(metrics)}</details>"
    return head + shown + folded("Every measure in words", verdict.lines) + numbers


def _text_first(found: Table) -> Table:
    """The columns with text after the first two, so that they are seen without scrolling."""
    if "question" not in found.head:
        return found
    start = list(found.head).index("question")
    order = [0, 1, *range(start, len(found.head)), *range(2, start)]
    rows = [[row[one] if one < start else replace(row[one], tone="row-text") for one in order] for row in found.rows]
    return replace(found, head=[found.head[one] for one in order], rows=rows)
