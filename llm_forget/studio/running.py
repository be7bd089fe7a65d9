"""The screen Run: the queue, and what a job measured so far. It only reads files, so every browser shows the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import RUN
from llm_forget.report.plots import training_curves
from llm_forget.runs import Run, load_run
from llm_forget.studio.desk import Desk
from llm_forget.studio.jobs import OVER, RUNNING, STOPPED, WAITING, Job
from llm_forget.studio.view import act, command_box, empty, link, listed, say, text, words

_NOTHING = "Nothing has run yet. Choose rows on the screen Find, then press Start on the screen Plan."
_EVERY = 2.0  # seconds between looks at the files


@dataclass(frozen=True)
class Running:
    """The components that other screens need."""

    job: Any
    message: Any
    look: Any


def run_screen(desk: Desk) -> Running:
    """Build the screen."""
    gr.Markdown("## Runs")
    job = gr.Dropdown([], label="Job", elem_id="job")
    status = words(empty(_NOTHING))
    with gr.Row():
        stop = gr.Button("Stop", visible=False)
        again = gr.Button("Go on", variant="primary", visible=False)
    message = words()
    curve = gr.Plot(label="What training measured", visible=False)
    log = gr.Textbox(label="What the command said last", lines=8, max_lines=12, interactive=False, visible=False)
    box = command_box()
    seen = gr.State(None)
    timer = gr.Timer(_EVERY)

    def look(id: str | None, before: Any) -> Any:
        jobs = desk.jobs.list()
        if not jobs:
            return gr.skip(), empty(_NOTHING), *[gr.update(visible=False)] * 4, "", None
        ids = [one.id for one in jobs]
        now = next((one for one in jobs if one.id == id), jobs[0])
        said, rows = now.said(), _rows(desk, now)
        choices = [(f"{one.id} · {one.argv[0]} {one.writes} · {one.state}", one.id) for one in jobs]
        key = (choices, now.id, len(rows), said, _minute(now))
        if key == before:
            return [gr.skip()] * 8
        found = _run(desk, now, rows)
        plot = gr.update(visible=False)
        if before is None or (before[1:3] != key[1:3] or before[0] != choices):
            figure = None if found is None else _figure(desk, now, found)
            plot = gr.update(value=figure, visible=figure is not None)
        else:
            plot = gr.skip()
        return (
            gr.update(choices=choices, value=now.id if now.id in ids else None),
            _status(desk, now, rows),
            gr.update(visible=now.state in (WAITING, RUNNING)),
            gr.update(visible=now.state == STOPPED),
            plot,
            gr.update(value="\n".join(said), visible=bool(said)),
            now.command,
            key,
        )

    outputs = [job, status, stop, again, curve, log, box, seen]
    for event in (timer.tick, job.input):
        act(event, look, [job, seen], outputs, message=None, show_progress="hidden")

    def stopped(id: str) -> str:
        desk.jobs.stop(id)
        return say("It stops at the end of this step, and saves a checkpoint. Press Stop again to end it at once.")

    def resumed(id: str) -> Any:
        return gr.update(value=desk.jobs.again(id).id)

    act(stop.click, stopped, [job], [message])
    act(again.click, resumed, [job], [job], message)
    return Running(job, message, lambda event: act(event, look, [job, seen], outputs, show_progress="hidden"))


def _minute(job: Job) -> int:
    """Changes often enough for the time that is shown."""
    return 0 if job.seconds is None or job.state in OVER else int(job.seconds // 5)


def _rows(desk: Desk, job: Job) -> list[dict[str, Any]]:
    """What the job measured, or an earlier one that it goes on with."""
    found = job.measured()
    if found or not job.writes:
        return found
    return next((rows for one in desk.jobs.list() if one.writes == job.writes and (rows := one.measured())), [])


def _run(desk: Desk, job: Job, rows: list[dict[str, Any]]) -> Run | None:
    """The run as far as it is: complete in its folder, or from what was measured."""
    folder = desk.place.root / job.writes / RUN
    if job.writes and (folder / "result.json").is_file():
        try:
            return load_run(folder, job.writes)
        except UserError:
            pass
    if not rows or rows[0].get("phase") != "start":
        return None
    start = rows[0]
    before = {key: start.get(key) for key in ("step", "forget", "retain", "neighbour")}
    result = {"method": "", "before": before, **{key: start.get(key) for key in ("forget_target", "utility_floor")}}
    return Run(folder, job.writes or job.id, "unlearn", {}, result, {}, {}, rows[1:])


def _figure(desk: Desk, job: Job, run: Run) -> Any:
    band = None
    try:
        suite = load_run(desk.place.root / job.writes / "oracle").suite()
        score = None if suite is None else suite.scores.get("forget.probability")
        if score is not None and score.low is not None and score.high is not None:
            band = (score.low, score.high)
    except UserError:
        pass
    try:
        return training_curves(run, band=band)
    except UserError:
        return None


def _status(desk: Desk, job: Job, rows: list[dict[str, Any]]) -> str:
    taken = "" if job.seconds is None else f", {job.seconds:.0f} s"
    facts = [("job", f"{job.id}: {job.argv[0]}"), ("state", f"{job.state}{taken}")]
    if job.writes:
        facts.append(("folder", job.writes))
    if rows and rows[0].get("phase") == "start":
        facts.append(("measured", _words(rows)))
    links = ""
    folder = desk.place.root / job.writes / RUN
    if job.writes and (folder / "result.json").is_file() and job.state in OVER:
        links = f"<p>{link(f'report/{job.writes}/{RUN}', 'Open the report')}</p>"
    told = {
        STOPPED: "It was stopped. “Go on” continues where it ended.",
        WAITING: "It waits until the job before it is over.",
    }.get(job.state, "")
    return listed(facts) + (f'<p class="hint">{text(told)}</p>' if told else "") + links


def _words(rows: list[dict[str, Any]]) -> str:
    start, last = rows[0], next((one for one in reversed(rows) if one["phase"] in ("check", "start")), rows[0])
    parts = [f"after step {last['step']}"]
    for key, aim, word in (("forget", "forget_target", "goal"), ("retain", "utility_floor", "floor")):
        if isinstance(last.get(key), int | float):
            goal = start.get(aim)
            parts.append(f"{key} {last[key]:.3f}" + (f" ({word} {goal:.3f})" if isinstance(goal, int | float) else ""))
    if isinstance(last.get("neighbour"), int | float):
        parts.append(f"neighbours {last['neighbour']:.3f}")
    return ", ".join(parts)
