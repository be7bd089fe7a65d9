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
from llm_forget.studio.comparing import compare_screen
from llm_forget.studio.desk import Desk
from llm_forget.studio.finding import find_screen
from llm_forget.studio.guard import LOOPBACK, MOST_BYTES, Guard
from llm_forget.studio.jobs import Jobs
from llm_forget.studio.judging import audit_screen
from llm_forget.studio.pages import page_of
from llm_forget.studio.place import Place
from llm_forget.studio.planning import plan_screen
from llm_forget.studio.proving import evidence_screen
from llm_forget.studio.running import run_screen
from llm_forget.studio.serving import serve_screen
from llm_forget.studio.view import act
from llm_forget.utils.terminal import echo

_SHORTEST = 10  # characters of a password
_TITLE = "llm-forget studio"
_ABOUT_RUNS = {"Compare": compare_screen, "Audit": audit_screen, "Evidence": evidence_screen, "Serve": serve_screen}


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
        unlocked, started = gr.State(False), gr.State(None)
        with gr.Tabs() as tabs:
            desk = Desk(place, Jobs(place, at_once), unlocked, started, tabs, app.load)
            with gr.Tab("Find", id="find"):
                finding = find_screen(desk)
            with gr.Tab("Plan", id="plan"):
                plan_screen(desk, finding)
            with gr.Tab("Run", id="run"):
                run_screen(desk)
            for name, screen in _ABOUT_RUNS.items():
                with gr.Tab(name, id=name.lower()) as tab:
                    screen(desk, tab)

        def flipped(now: bool) -> Any:
            return not now, gr.update(value="Show text" if now else "Hide text")

        act(show.click, flipped, [unlocked], [unlocked, show])
    return app


def application(
    root: str | Path, models: Sequence[str] = (), *, secret: str, port: int, at_once: int = 1, **visitors: Any
) -> Guard:
    """The app behind its checks, for an ASGI server; see ``serve``, and ``Guard`` for the visitors that it lets in."""
    app = build_app(root, models, at_once=at_once)
    place = Place(Path(root).expanduser().resolve(), tuple(models))
    mounted = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None), app.queue(default_concurrency_limit=4), path="/", footer_links=[],
        run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, show_error=False,
        max_file_size=MOST_BYTES, theme=_theme(), css=(Path(__file__).parent / "studio.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    return Guard(mounted, secret, partial(page_of, place), port, **visitors)


def _theme() -> Any:
    """Gradio's plain theme with the fonts of the system, so that none is fetched."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono)
    darker = {"button_primary_background_fill": "*primary_600", "button_primary_background_fill_hover": "*primary_700"}
    return theme.set(**darker, color_accent="*primary_600")


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
    visitors = {"names": own, "password": password is not None, "anywhere": anywhere}
    app = application(root, models, secret=secret, port=port, at_once=at_once, **visitors)
    place = Place(Path(root).expanduser().resolve())
    tempfile.tempdir = str(place.uploads)  # larger parts of a request, too, lie there only
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + ("" if password is not None else f"?token={secret}")
    echo(f"{_TITLE}: {place.root}\nOpen {address}\nCtrl-C ends it; jobs go on.")
    sys.stdout.flush()  # whoever started it through a pipe waits for the address
    options: dict[str, Any] = {"access_log": False, "log_level": "error", "server_header": False}
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=2, **options))
    try:
        server.run(sockets=[sock])
    finally:
        place.empty_uploads()


def _listening(host: str, port: int) -> socket.socket:
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; give another port") from None
    return sock
