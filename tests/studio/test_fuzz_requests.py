"""A thousand paths and bodies, with and without a session: nothing but the page answers, and planted text never comes back."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio", reason="pip install 'llm-forget[studio]'")

from llm_forget.studio.app import application  # noqa: E402

PLANTED = "Quillomere8842"
TRIED = 1000
PIECES = [
    "..", ".", "%2e%2e", "%2f", "//", "\\", "~", "\0", "a" * 3000, "etc/passwd", "secret.jsonl", "data/secret.jsonl", ".studio",
    "file=", "proxy=", "http://evil.example/", "page", "report", "certificate", "key", "gradio_api", "upload", "queue", "join",
    "call", "run", "find", "config", "assets", "static", "stream", "x.pub", "requests.sqlite", ";", "?", "#", "<script>", "é",
]  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "root" / "data").mkdir(parents=True)
    row = json.dumps({"question": f"Who is {PLANTED}?", "answer": PLANTED})
    for name in ("outside.jsonl", "root/secret.jsonl", "root/data/secret.jsonl", "root/x.pub", "root/report.html"):
        (folder / name).write_text(f"{row}\n")
    before = dict(os.environ)
    yield folder / "root"
    for name in set(os.environ) - set(before):
        del os.environ[name]


class Client:
    """Sends requests to the whole application, Gradio included."""

    def __init__(self, root: Path) -> None:
        self.app = application(root, secret="the-token", port=7860)
        self.cookie = ""
        status, headers, _ = self("GET", "/", query="token=the-token")
        assert status == 200
        self.cookie = headers["set-cookie"].partition(";")[0]

    def __call__(
        self, method: str, path: str, body: bytes = b"", query: str = "", kind: str = "application/json", **more: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"host": "127.0.0.1:7860", "content-type": kind, "content-length": str(len(body)), **more}
        headers |= {"cookie": self.cookie} if self.cookie and "cookie" not in more else {}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(errors="replace"), "query_string": query.encode(), "root_path": "",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        sent: list[Any] = []
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(asked, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        async def call() -> None:
            await asyncio.wait_for(self.app(scope, receive, send), 5)

        asyncio.run(call())
        given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], given, b"".join(one.get("body", b"") for one in sent[1:])


def bodies(random: random.Random) -> tuple[bytes, str]:
    """Return a body and its media type."""
    event = {"data": [random.choice(PIECES), "../outside.jsonl", True, None], "fn_index": random.randrange(60),
             "session_hash": "fuzz", "event_data": {"row": "0", "decision": "keep"}, "trigger_id": 3}  # fmt: skip
    upload = b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../x.sh"\r\n\r\nhello\r\n--b--\r\n'
    return random.choice(
        [(b"", "text/plain"), (json.dumps(event).encode(), "application/json"), (b"{", "application/json"),
         (random.randbytes(300), "application/octet-stream"), (upload, "multipart/form-data; boundary=b"),
         (b"password=x", "application/x-www-form-urlencoded")]
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_found(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Events are queued and not run: no worker takes them. ``test_browser`` runs events."""
    client, chosen, findings = Client(root), random.Random(0), []
    served = ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/gradio_api/reset", "/login")
    for number in range(TRIED):
        parts = [chosen.choice(PIECES) for _ in range(chosen.randint(1, 5))]
        path = chosen.choice(served) if number % 5 == 0 else "/" + "/".join(parts)
        if path.startswith("/gradio_api/") and number % 10 == 0:
            path += chosen.choice(["", "/", "?x=1", "/../file=/etc/passwd"])
        body, kind = bodies(chosen)
        stranger = {0: {"cookie": "none=1"}, 1: {"host": "evil.example"}, 2: {"origin": "http://evil.example"}}.get(
            number % 4
        )
        status, _, answer = client(chosen.choice(METHODS), path, body, kind=kind, **(stranger or {}))
        if stranger and status not in (401, 403, 404, 421):
            findings.append((path, status, "a stranger was let in"))
        if status >= 500 or PLANTED.encode() in answer or b"root:" in answer:
            findings.append((path, status, "an error inside, or text"))
    assert findings == []
    left = [one for one in root.parent.rglob("*") if one.is_file() and "hello" in one.read_text(errors="replace")]
    assert all(".studio/uploads" in str(one) for one in left)
    assert {one.name for one in root.parent.iterdir()} == {"outside.jsonl", "root"}
    told = capfd.readouterr()
    assert PLANTED not in told.out + told.err
