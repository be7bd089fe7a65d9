"""`llm-forget deploy`: load an adapter into a running vLLM, and keep it if it answers as it should."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.utils.terminal import echo, say


def deploy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of an unlearning run with an adapter")],
    server: Annotated[str, typer.Option(metavar="URL", help="the running vLLM")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="name under which it is served; one that is served is replaced")
    ],
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the model before unlearning, if it has moved since the run")
    ] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="environment variable with the server's key")
    ] = "OPENAI_API_KEY",
    as_json: Json = False,
) -> None:
    """Load an adapter into a running vLLM, and roll back if it answers otherwise.

    Asks five general questions here and there; no text of the data is sent. The
    server needs --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and reads
    the adapter's folder itself. Exit status 1: rolled back.

    \b
    Example:
      llm-forget deploy runs/mine --server http://localhost:8000 --name forgotten
    """
    from rich.console import Console

    from llm_forget.sharing.deploy import deploy as load

    console = Console(stderr=True)
    done = load(run, server, name, base=base, key_variable=key_variable, say=lambda line: say(console, line))
    if as_json:
        print_json({"ok": done.ok, "lines": list(done.lines)})
    else:
        for line in done.lines:
            echo(line)
    raise typer.Exit(0 if done.ok else 1)
