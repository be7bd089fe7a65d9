"""The screen Plan: what would be done for an order, what it costs, and what is missing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import SETS
from llm_forget.studio.desk import Desk
from llm_forget.studio.finding import Finding, write
from llm_forget.studio.jobs import command_line, result_of
from llm_forget.studio.view import act, command_box, empty, listed, say, text, words

_START = "Choose a model and the rows to forget, then press Plan. Nothing is changed by a plan."
_LABELS = {
    "forget": "Rows to forget",
    "retain": "Rows to keep (optional)",
    "holdout": "Similar rows that nobody learned (optional)",
    "neighbours": "Rows about similar people, measured only (optional)",
}


def plan_screen(desk: Desk, finding: Finding) -> None:
    """Build the screen."""
    place = desk.place
    gr.Markdown("## Plan")
    fields: dict[str, Any] = {"model": gr.Dropdown([], label="Model that knows the rows")}
    with gr.Row():
        for name in ("forget", "retain"):
            fields[name] = gr.Dropdown([], label=_LABELS[name], value=None)
    with gr.Accordion("More that makes it better", open=False):
        with gr.Row():
            for name in ("holdout", "neighbours"):
                fields[name] = gr.Dropdown([], label=_LABELS[name], value=None)
        with gr.Row():
            for name, label in (("base", "Model before it learned the rows"), ("oracle", "Model that never saw them")):
                fields[name] = gr.Dropdown([], label=f"{label} (optional)", value=None)
    with gr.Row():
        fields["name"] = gr.Textbox(label="Name of this request, no person's name", value="request-1")
        fields["audit"] = gr.Checkbox(True, label="Attack the result afterwards (audit)")
    with gr.Row():
        go = gr.Button("Plan")
        start = gr.Button("Start", variant="primary")
    message = words()
    shown = words(empty(_START))
    box = command_box()
    inputs = list(fields.values())

    def offered(model: str | None) -> list[Any]:
        models, data = place.list_models(), gr.update(choices=place.list_data())
        return [desk.choose(models, model), *[gr.update(choices=models)] * 2, *[data] * len(SETS)]

    def used(made: Any, name: str, model: str | None) -> Any:
        files, notes = write(desk, made, name)
        # made-up holdout rows are left to a person's choice: answers of a kind that the model knows set the goal too high
        chosen = {one: file for one, file in files.items() if one != "holdout"}
        sets = [gr.update(choices=place.list_data(), value=chosen.get(one)) for one in SETS]
        return gr.Tabs(selected="plan"), desk.choose(place.list_models(), model), *sets, name, say("\n".join(notes))

    def planned(*values: Any) -> Any:
        return plan(desk, dict(zip(fields, values, strict=True)))

    def begun(*values: Any) -> Any:
        argv, folder = order_of(desk, dict(zip(fields, values, strict=True)))
        return desk.jobs.start([*argv, "--yes"], folder).id, command_line([*argv, "--yes"])

    filled = [fields[one] for one in ("model", *SETS, "name")]
    given = [finding.search, finding.name, fields["model"]]
    done = act(finding.make.click, used, given, [desk.tabs, *filled, message], finding.message)
    for event in (go.click, done.success):
        act(event, planned, inputs, [shown, box], message, slow=True)
    act(start.click, begun, inputs, [desk.started, box], message)
    # what lies in the folder may have changed since the app was built
    lists = [fields[one] for one in ("model", "base", "oracle", *SETS)]
    act(desk.load, offered, [fields["model"]], lists)


def order_of(desk: Desk, given: dict[str, Any]) -> tuple[list[str], str]:
    """The command of an order, and the folder that it writes.

    Raises:
        UserError: something is missing, or lies outside the root.
    """
    if not given["model"] or not given["forget"]:
        raise UserError("choose a model and the rows to forget")
    argv = ["forget", "--model", desk.place.model(given["model"])]
    for name in SETS:
        if given[name]:
            argv += [f"--{name}", desk.place.relative(desk.place.inside(given[name], what=_LABELS[name]))]
    for name in ("base", "oracle"):
        if given[name]:
            argv += [f"--{name}", desk.place.model(given[name])]
    folder = desk.place.new_folder(given["name"], "runs")
    return [*argv, "--to", folder, *([] if given["audit"] else ["--no-audit"])], folder


def plan(desk: Desk, given: dict[str, Any]) -> tuple[str, str]:
    """What ``llm-forget forget --dry-run`` says, and the command."""
    argv, _ = order_of(desk, given)
    lines = result_of(desk.place, [*argv, "--dry-run"]).splitlines()
    found = [(line[:12].strip(), line[12:]) for line in lines if line.strip()]
    missing = "".join(f"<li>{text(value)}</li>" for name, value in found if name == "missing")
    kept = [(name, value) for name, value in found if name != "missing"]
    more = f"<h3>Missing, and what that costs</h3><ul>{missing}</ul>" if missing else ""
    return listed(kept) + more, command_line([*argv, "--yes"])
