"""`llm-forget studio`: forgetting in a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

_PASSWORD = "LLM_FORGET_STUDIO_PASSWORD"


def studio(
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="folder with the data and models; nothing outside it is read or written")
    ] = Path(),
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="folder or hub id of a model outside --root; repeatable")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="address to listen on; others than this machine's need a password")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="port; 0 takes a free one")] = 7860,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="host name under which others reach it; repeatable"),
    ] = None,
    at_once: Annotated[int, typer.Option("--at-once", metavar="N", help="jobs that run at the same time")] = 1,
) -> None:
    """Open the studio: a page on this machine to find, forget, audit and certify.

    Prints an address with a token. With --host it asks for a password instead, or
    takes it from LLM_FORGET_STUDIO_PASSWORD. Nothing is loaded from the internet.
    Jobs go on when the page or the studio is closed.

    \b
    Examples:
      llm-forget studio
      llm-forget studio --root work --model runs/target/model
    """
    from llm_forget.errors import UserError
    from llm_forget.utils.extras import require_extra

    require_extra("gradio", "the studio", "studio")
    if at_once < 1:
        raise UserError(f"--at-once is {at_once}; give 1 or more")
    password = os.environ.get(_PASSWORD) or None
    if password is None and host not in ("localhost", "127.0.0.1", "::1") and sys.stdin.isatty():
        password = str(typer.prompt("password of the studio", hide_input=True, confirmation_prompt=True, err=True))
    from llm_forget.studio.app import serve

    serve(root, model or (), host=host, port=port, password=password, names=name or (), at_once=at_once)
