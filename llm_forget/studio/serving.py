"""The screen Serve: will servers load the adapter, how it is served, and loading it into a running vLLM."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from llm_forget.adapters.card import vllm_rank
from llm_forget.errors import UserError
from llm_forget.studio.desk import Desk
from llm_forget.studio.guard import LOOPBACK
from llm_forget.studio.jobs import command_line, result_of
from llm_forget.studio.view import act, command_box, empty, say, text, words
from llm_forget.utils.files import is_plain_name

_NOTHING = "There is no finished run. The screens Find and Plan start one."


def serve_screen(desk: Desk, tab: Any) -> None:
    """Build the screen."""
    gr.Markdown("## Serve")
    run = gr.Dropdown([], label="Run")
    how = words(empty("Reading the runs …"))
    doctor = gr.Button("Will servers load it?")
    message = words()
    found = words()
    gr.Markdown("### Load it into a running vLLM\nIt is kept only if five control questions are answered as here.")
    with gr.Row():
        server = gr.Textbox(label="Server on this machine", value="http://127.0.0.1:8000")
        name = gr.Textbox(label="Name to serve it under", value="forgotten")
        load = gr.Button("Deploy", variant="primary")
    problem, loaded = words(), words()
    box = command_box()

    def look(chosen: str | None) -> Any:
        runs, kept = desk.runs(chosen)
        return runs, _how(desk, kept)

    def examined(chosen: str) -> tuple[str, str]:
        base, adapter = _parts(desk, chosen)
        argv = ["doctor", "--base", base, "--adapter", adapter, "--max-rank", "512"]
        lines = result_of(desk.place, argv).splitlines()
        return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>", command_line(argv)

    def deployed(chosen: str, url: str, served: str) -> tuple[str, str]:
        _parts(desk, chosen)
        parts = urlsplit((url or "").strip())
        if parts.scheme not in ("http", "https") or parts.hostname not in LOOPBACK:
            raise UserError("the studio talks to servers of this machine only, such as http://127.0.0.1:8000; "
                            "for others there is llm-forget deploy")  # fmt: skip
        if not is_plain_name(served or ""):
            raise UserError("the name may have letters, digits, dots and dashes")
        argv = ["deploy", chosen, "--server", f"{parts.scheme}://{parts.netloc}{parts.path}", "--name", served]
        done = json.loads(result_of(desk.place, [*argv, "--json"]))
        return say("\n".join(done["lines"]), "note" if done["ok"] else "alert"), command_line(argv)

    act(tab.select, look, [run], [run, how], message)
    act(run.input, lambda chosen: _how(desk, chosen), [run], [how], message)
    act(doctor.click, examined, [run], [found, box], message, slow=True)
    act(load.click, deployed, [run, server, name], [loaded, box], problem, slow=True)


def _parts(desk: Desk, name: str | None) -> tuple[str, str]:
    """Base and adapter of a run, as commands name them."""
    run = desk.run(name)
    if not (run.path / "adapter").is_dir():
        raise UserError("this run trained all weights: serve its model folder; there is no adapter to check or to load")
    base = desk.place.named_in_run((run.recipe.get("model") or {}).get("name"))
    return desk.place.model(base), f"{name}/adapter"


def _how(desk: Desk, name: str | None) -> str:
    if not name:
        return empty(_NOTHING)
    try:
        base, adapter = _parts(desk, name)
    except UserError as error:
        return say(str(error), "alert")
    rank = int((desk.run(name).recipe.get("adapter") or {}).get("rank") or 16)
    lines = [
        f"vllm serve {base} --enable-lora --max-lora-rank {vllm_rank(rank) or rank} --lora-modules forgotten={adapter}",
        command_line(["merge", "--base", base, "--adapter", adapter, "--to", f"{name.rpartition('/')[0]}/merged"]),
    ]
    told = "The adapter encodes what was forgotten: give it to nobody who may not see that. Removing it brings the facts back."
    return f"<pre>{text(chr(10).join(lines))}</pre>" + say(told)
