"""A real server as a child process on a loopback port, and the requests that the tests send to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE = 300.0  # seconds until a server counts as failed to start


class RefusedError(Exception):
    """The server answered with an error."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: its port on 127.0.0.1.
        seconds: time from its start until it was ready.
    """

    port: int
    seconds: float

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{error.code}: {error.read().decode()[:500]}") from error
        return json.loads(text) if text.startswith("{") else text

    def answer(self, model: str, question: str, max_tokens: int) -> str:
        """Return the greedy answer to one user turn after an empty system turn."""
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        return str(self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]).strip()

    def logps(self, model: str, ids: Sequence[int]) -> list[float]:
        """Return the log-prob of each token after the first, in nats (vLLM's ``prompt_logprobs``)."""
        body = {"model": model, "prompt": list(ids), "temperature": 0, "max_tokens": 1, "prompt_logprobs": 0}
        rows = self.post("/v1/completions", body)["choices"][0]["prompt_logprobs"]
        return [row[str(token)]["logprob"] for row, token in zip(rows[1:], ids[1:], strict=True)]

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter while the server runs (vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING)."""
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        """Unload an adapter."""
        self.post("/v1/unload_lora_adapter", {"lora_name": name})


@contextmanager
def serving(command: Sequence[str], log: Path, **variables: str) -> Iterator[Server]:
    """Start a server, wait until it reports that it is healthy, and end it with all its children.

    Args:
        command: its command line; ``--host 127.0.0.1 --port N`` is added.
        log: file for its output; the last part is shown if it does not start.
        variables: environment variables, in addition to those of the test.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **kept, **variables}
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        while not _well(port):
            if process.poll() is not None or time.monotonic() - started > _PATIENCE:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield Server(port, time.monotonic() - started)
    finally:
        _end(process)


def _well(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
            process.wait(30)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
