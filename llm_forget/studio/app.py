"""The app: its screens, its look, and the server on this machine."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

import fastapi
import gradio as gr

from llm_forget.errors import UserError
from llm_forget.forgetting.order import SETS
from llm_forget.studio.comparing import compare_screen
from llm_forget.studio.desk import Desk
from llm_forget.studio.finding import find_screen, write
from llm_forget.studio.guard import LOOPBACK, MOST_BYTES, Guard
from llm_forget.studio.jobs import Jobs
from llm_forget.studio.judging import audit_screen
from llm_forget.studio.pages import page_of
from llm_forget.studio.place import Place
from llm_forget.studio.planning import order_of, plan, plan_screen
from llm_forget.studio.proving import evidence_screen
from llm_forget.studio.running import run_screen
from llm_forget.studio.serving import serve_screen
from llm_forget.studio.view import act, command, say
from llm_forget.utils.terminal import echo

_SHORTEST = 10  # characters of a password
_TITLE = "llm-forget studio"


def build_app(root: str | Path, models: Sequence[str] = (), *, at_once: int = 1) -> Any:
    """The app as a ``gradio.Blocks``.

    Args:
        root: the folder in which everything lies that may be read and written.
        models: folders and hub ids of models outside it that may be used.
        at_once: jobs that run at the same time.

    Raises:
        UserError: the folder does not exist.
    """
    place = Place.at(root, models)
    os.environ["GRADIO_TEMP_DIR"] = str(place.uploads)
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as app:
        with gr.Row(elem_classes="top"):
            gr.Markdown("# llm-forget studio")
            show = gr.Button("Show text", size="sm", elem_id="unlock", scale=0, min_width=160)
        unlocked = gr.State(False)
        with gr.Tabs() as tabs:
            desk = Desk(place, Jobs(place, at_once), unlocked, tabs)
            with gr.Tab("Find", id="find"):
                finding = find_screen(desk)
            with gr.Tab("Plan", id="plan"):
                planning = plan_screen(desk)
            with gr.Tab("Run", id="run"):
                running = run_screen(desk)
            with gr.Tab("Compare", id="compare") as tab:
                compare_screen(desk, tab)
            with gr.Tab("Audit", id="audit") as tab:
                audited, audit_job = audit_screen(desk, tab)
            with gr.Tab("Evidence", id="evidence") as tab:
                evidence_screen(desk, tab)
            with gr.Tab("Serve", id="serve") as tab:
                serve_screen(desk, tab)

        def flipped(now: bool) -> Any:
            return not now, gr.update(value="Show text" if now else "Hide text")

        act(show.click, flipped, [unlocked], [unlocked, show], show_progress="hidden")

        def used(made: Any, name: str, model: str | None) -> Any:
            files, _, notes = write(desk, made, name)
            data = place.list_data()
            # made-up holdout rows are left to a person's choice: answers of a kind that the model knows set the goal too high
            chosen = {name: file for name, file in files.items() if name != "holdout"}
            sets = [gr.update(choices=data, value=chosen.get(one)) for one in SETS]
            return (
                gr.Tabs(selected="plan"),
                desk.choose(place.list_models(), model),
                *sets,
                name,
                say("\n".join(notes)),
            )

        fields = planning.fields
        filled = [fields[one] for one in ("model", *SETS, "name")]
        done = act(
            finding.make.click, used, [finding.search, finding.name, fields["model"]], [tabs, *filled, planning.message],
            finding.message,
        )  # fmt: skip

        def planned(*values: Any) -> Any:
            return plan(desk, planning, values) if values[0] and values[1] else (gr.skip(), gr.skip())

        act(done.then, planned, planning.inputs, [planning.shown, planning.box], planning.message)

        def started(*values: Any) -> Any:
            argv, folder = order_of(desk, planning, values)
            job = desk.jobs.start([*argv, "--yes"], folder)
            return (
                gr.Tabs(selected="run"),
                gr.update(choices=[(job.id, job.id)], value=job.id),
                command([*argv, "--yes"]),
            )

        begun = act(planning.start.click, started, planning.inputs, [tabs, running.job, planning.box], planning.message)
        running.look(begun.then)

        def went(id: str) -> Any:
            return gr.Tabs(selected="run"), gr.update(choices=[(id, id)], value=id)

        running.look(act(audited, went, [audit_job], [tabs, running.job]).then)
        running.look(app.load)
        # what lies in the folder may have changed since the app was built
        act(app.load, lambda: desk.choose(place.list_data()), None, [finding.data], show_progress="hidden")
        act(app.load, lambda: planning.choices(desk), None, planning.choosers, show_progress="hidden")
    return app


def application(
    root: str | Path,
    models: Sequence[str] = (),
    *,
    secret: str,
    port: int,
    password: bool = False,
    names: Sequence[str] = (),
    anywhere: bool = False,
    at_once: int = 1,
) -> Guard:
    """The app behind its checks, for an ASGI server; see ``serve``."""
    app = build_app(root, models, at_once=at_once)
    place = Place(Path(root).expanduser().resolve(), tuple(models))
    mounted = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None), app.queue(default_concurrency_limit=4), path="/", footer_links=[],
        run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, show_error=False,
        max_file_size=MOST_BYTES, theme=_theme(), css=(Path(__file__).parent / "studio.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    return Guard(mounted, secret, partial(page_of, place), port, names, password, anywhere)


def _theme() -> Any:
    """Gradio's plain theme with the fonts of the system, so that none is fetched."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono)


def serve(
    root: str | Path = ".",
    models: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    names: Sequence[str] = (),
    at_once: int = 1,
) -> None:
    """Serve the app until it is interrupted. Jobs go on afterwards.

    Args:
        root: the folder in which everything lies that may be read and written.
        models: folders and hub ids of models outside it that may be used.
        host: the address to listen on; one that others can reach needs a password.
        port: the port; 0 for a free one.
        password: asked for in place of the token of the printed address.
        names: host names under which others reach the app.
        at_once: jobs that run at the same time.

    Raises:
        UserError: the folder does not exist, the password is missing or short, or the port is taken.
    """
    import uvicorn

    anywhere = host not in LOOPBACK
    if anywhere and password is None:
        raise UserError(f"--host {host} lets other machines in, so it needs a password: set LLM_FORGET_STUDIO_PASSWORD")
    if password is not None and len(password) < _SHORTEST:
        raise UserError(f"the password has {len(password)} characters; give {_SHORTEST} or more")
    sock = _listening(host, port)
    port = sock.getsockname()[1]
    secret = password or secrets.token_urlsafe(32)
    own = [*names, *([socket.gethostname(), socket.getfqdn()] if anywhere else [])]
    app = application(
        root,
        models,
        secret=secret,
        port=port,
        password=password is not None,
        names=own,
        anywhere=anywhere,
        at_once=at_once,
    )
    place = Place(Path(root).expanduser().resolve())
    tempfile.tempdir = str(place.uploads)  # larger parts of a request, too, lie there only
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + ("" if password is not None else f"?token={secret}")
    echo(f"{_TITLE}: {place.root}\nOpen {address}\nCtrl-C ends it; jobs go on.")
    sys.stdout.flush()  # whoever started it through a pipe waits for the address
    server = uvicorn.Server(
        uvicorn.Config(app, access_log=False, log_level="error", timeout_graceful_shutdown=2, server_header=False)
    )
    try:
        server.run(sockets=[sock])
    finally:
        place.empty_uploads()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; give another port") from None
    return sock
