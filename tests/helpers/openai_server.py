"""An OpenAI-compatible server over a loaded model, as vLLM answers an audit: completions with prompt log-probs, and chat."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from audited import qa

from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.examples import Message

KEY = "sk-not-to-be-written"


class Handler(BaseHTTPRequestHandler):
    """The completions and chat interfaces of an OpenAI-compatible server over a loaded model."""

    subject: LoadedSubject
    paths: tuple[str, ...]
    needs_key = False
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        if self.needs_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.reply(401, {"error": "no key"})
        if self.path not in self.paths or body["model"] != "served":
            return self.reply(404, {"error": "not here"})
        return self.reply(200, (self.chat if "chat" in self.path else self.completions)(body))

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = tuple(body["prompt"])
        with LOCK:
            text = self.subject.complete([ids], max_new_tokens=body["max_tokens"])[0]
            scores = self.subject._score([(ids, 1)])[0].token_logps
        rows = [None, *({str(token): {"logprob": float(one)}} for token, one in zip(ids[1:], scores, strict=True))]
        choice = {"text": text, **({"prompt_logprobs": rows} if "prompt_logprobs" in body else {})}
        return {"choices": [choice] * body.get("n", 1)}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        turns = tuple(Message(one["role"], one["content"]) for one in body["messages"])
        row = qa(turns[-1].content, "-")
        with LOCK:
            text = self.subject.ask([row], max_new_tokens=body["max_tokens"])[0]
        return {"choices": [{"message": {"role": "assistant", "content": text}}]}

    def reply(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *given: Any) -> None:
        pass


LOCK = threading.Lock()
ALL = ("/v1/completions", "/v1/chat/completions")


@contextmanager
def serving(
    subject: LoadedSubject, paths: tuple[str, ...] = ALL, *, needs_key: bool = False
) -> Iterator[tuple[str, list[Any]]]:
    seen: list[Any] = []
    handler = type("Own", (Handler,), {"subject": subject, "paths": paths, "needs_key": needs_key, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
