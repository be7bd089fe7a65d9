"""The screen Plan: what would be done for an order, what it costs, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import SETS
from llm_forget.studio.desk import Desk
from llm_forget.studio.jobs import result_of
from llm_forget.studio.view import act, command, command_box, empty, listed, text, words

_START = "Choose a model and the rows to forget, then press Plan. Nothing is changed by a plan."
_LABELS = {
    "forget": "Rows to forget",
    "retain": "Rows to keep (optional)",
    "holdout": "Similar rows that nobody learned (optional)",
    "neighbours": "Rows about similar people, measured only (optional)",
}


@dataclass(frozen=True)
class Planning:
    """The components that other screens need."""

    fields: dict[str, Any]
    start: Any
    go: Any
    shown: Any
    box: Any
    message: Any

    @property
    def inputs(self) -> list[Any]:
        """The fields in order."""
        return list(self.fields.values())

    @property
    def choosers(self) -> list[Any]:
        """The fields that name a file or a model."""
        return [field for name, field in self.fields.items() if name not in ("name", "audit")]

    def choices(self, desk: Desk) -> list[Any]:
        """What they offer now."""
        data, models = desk.place.list_data(), desk.place.list_models()
        found = {name: gr.update(choices=data if name in SETS else models) for name in self.fields}
        if len(models) == 1:
            found["model"] = gr.update(choices=models, value=models[0])
        return [found[name] for name in self.fields if name not in ("name", "audit")]


def plan_screen(desk: Desk) -> Planning:
    """Build the screen."""
    place = desk.place
    gr.Markdown("## Plan")
    models, data = place.list_models(), place.list_data()
    fields: dict[str, Any] = {
        "model": gr.Dropdown(models, label="Model that knows the rows", value=models[0] if len(models) == 1 else None)
    }
    with gr.Row():
        for name in ("forget", "retain"):
            fields[name] = gr.Dropdown(data, label=_LABELS[name], value=None)
    with gr.Accordion("More that makes it better", open=False):
        with gr.Row():
            for name in ("holdout", "neighbours"):
                fields[name] = gr.Dropdown(data, label=_LABELS[name], value=None)
        with gr.Row():
            for name, label in (("base", "Model before it learned the rows"), ("oracle", "Model that never saw them")):
                fields[name] = gr.Dropdown(models, label=f"{label} (optional)", value=None)
    with gr.Row():
        fields["name"] = gr.Textbox(label="Name of this request, no person's name", value="request-1")
        fields["audit"] = gr.Checkbox(True, label="Attack the result afterwards (audit)")
    with gr.Row():
        go = gr.Button("Plan")
        start = gr.Button("Start", variant="primary")
    message = words()
    shown = words(empty(_START))
    box = command_box()
    made = Planning(fields, start, go, shown, box, message)
    act(go.click, lambda *values: plan(desk, made, values), made.inputs, [shown, box], message, show_progress="minimal")
    return made


def order_of(desk: Desk, made: Planning, values: tuple[Any, ...]) -> tuple[list[str], str]:
    """The command of an order, and the folder that it writes.

    Raises:
        UserError: something is missing, or lies outside the root.
    """
    given = dict(zip(made.fields, values, strict=True))
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


def plan(desk: Desk, made: Planning, values: tuple[Any, ...]) -> tuple[str, str]:
    """What ``llm-forget forget --dry-run`` says, and the command."""
    argv, _ = order_of(desk, made, values)
    lines = result_of(desk.place, [*argv, "--dry-run"]).splitlines()
    found = [(line[:12].strip(), line[12:]) for line in lines if line.strip()]
    missing = "".join(f"<li>{text(value)}</li>" for name, value in found if name == "missing")
    kept = [(name, value) for name, value in found if name != "missing"]
    more = f"<h3>Missing, and what that costs</h3><ul>{missing}</ul>" if missing else ""
    return listed(kept) + more, command([*argv, "--yes"])
