"""The screen Run: the queue, and what a job measured so far. It only reads files, so every browser shows the same."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import RUN
from llm_forget.report.plots import training_curves
from llm_forget.runs import Run, load_run
from llm_forget.studio.desk import Desk
from llm_forget.studio.jobs import OVER, RUNNING, STOPPED, WAITING, Job, command_line
from llm_forget.studio.view import act, command_box, empty, link, listed, say, text, words

_NOTHING = "Nothing has run yet. Choose rows on the screen Find, then press Start on the screen Plan."
_EVERY = 2.0  # seconds between looks at the files


def run_screen(desk: Desk) -> None:
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
        now = next((one for one in jobs if one.id == id), jobs[0] if jobs else None)
        if now is None:
            return [gr.skip()] * 8
        said, rows = now.said(), _rows(desk, now)
        choices = [(f"{one.id} · {one.argv[0]} {one.writes} · {one.state}", one.id) for one in jobs]
        key = [choices, now.id, len(rows), said, _minute(now)]
        if key == before:
            return [gr.skip()] * 8
        run, plot = _run(desk, now, rows), gr.skip()
        if before is None or before[:3] != key[:3]:
            figure = None if run is None else _figure(desk, now, run)
            plot = gr.update(value=figure, visible=figure is not None)
        return (
            gr.update(choices=choices, value=now.id),
            _status(now, run),
            gr.update(visible=now.state in (WAITING, RUNNING)),
            gr.update(visible=now.state == STOPPED),
            plot,
            gr.update(value="\n".join(said), visible=bool(said)),
            command_line(now.argv),
            key,
        )

    outputs = [job, status, stop, again, curve, log, box, seen]
    for event in (timer.tick, job.input, desk.load):
        act(event, look, [job, seen], outputs)

    def went(id: str) -> Any:
        return gr.Tabs(selected="run"), gr.update(choices=[(id, id)], value=id)

    act(act(desk.started.change, went, [desk.started], [desk.tabs, job]).then, look, [job, seen], outputs)

    def stopped(id: str) -> str:
        desk.jobs.stop(id)
        return say("It stops at the end of this step, and saves a checkpoint. Press Stop again to end it at once.")

    def resumed(id: str) -> Any:
        return gr.update(value=desk.jobs.again(id).id)

    act(stop.click, stopped, [job], [message])
    act(again.click, resumed, [job], [job], message)


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
        with suppress(UserError):
            return load_run(folder, job.writes)
    if not rows or rows[0].get("phase") != "start":
        return None
    start = rows[0]
    before = {key: start.get(key) for key in ("step", "forget", "retain", "neighbour")}
    result = {"method": "", "before": before, **{key: start.get(key) for key in ("forget_target", "utility_floor")}}
    return Run(folder, job.writes or job.id, "unlearn", {}, result, {}, {}, rows[1:])


def _figure(desk: Desk, job: Job, run: Run) -> Any:
    band = None
    with suppress(UserError):
        suite = load_run(desk.place.root / job.writes / "oracle").suite()
        score = None if suite is None else suite.scores.get("forget.probability")
        if score is not None and score.low is not None and score.high is not None:
            band = (score.low, score.high)
    with suppress(UserError):
        return training_curves(run, band=band)
    return None


def _status(job: Job, run: Run | None) -> str:
    taken = "" if job.seconds is None else f", {job.seconds:.0f} s"
    facts = [("job", f"{job.id}: {job.argv[0]}"), ("state", f"{job.state}{taken}")]
    if job.writes:
        facts.append(("folder", job.writes))
    done = run is not None and "after" in run.result and job.state in OVER
    links = f"<p>{link(f'report/{job.writes}/{RUN}', 'Open the report')}</p>" if done else ""
    told = {
        STOPPED: "It was stopped. “Go on” continues where it ended.",
        WAITING: "It starts as soon as no other job runs.",
    }.get(job.state, "")
    return listed(facts) + (f'<p class="hint">{text(told)}</p>' if told else "") + links
