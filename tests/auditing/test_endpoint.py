"""A model behind a server gives the scores it gives in this process; the key goes to the server and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from audited import BUDGET, ENCODING, tiny_pair

from llm_forget.auditing.attack import Access
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.attacks.membership import Membership
from llm_forget.auditing.endpoint import Endpoint, ServedSubject
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.examples import Message
from llm_forget.errors import UserError

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
        from audited import qa

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


def served(url: str, target: LoadedSubject) -> ServedSubject:
    return ServedSubject(Endpoint(url, "served"), target.tokenizer, ENCODING, FORMS["merged_fp32"])


def test_scores_equal_those_in_process() -> None:
    rows, target, _ = tiny_pair()
    with serving(target) as (url, _):
        subject = served(url, target)
        assert subject.access == Access.CHAT | Access.TOKENS | Access.LOGPS
        for attack in (Greedy(), Membership()):
            here, there = attack.attack(target, rows, BUDGET), attack.attack(subject, rows, BUDGET)
            np.testing.assert_allclose(there.scores, here.scores, atol=1e-4)


def test_a_server_with_chat_only_gets_turns_and_gives_less_access() -> None:
    rows, target, _ = tiny_pair()
    with serving(target, ALL[1:]) as (url, seen):
        subject = served(f"{url}/v1/", target)
        assert subject.access == Access.CHAT
        np.testing.assert_allclose(
            Greedy().attack(subject, rows, BUDGET).scores, Greedy().attack(target, rows, BUDGET).scores
        )
        assert seen[-1]["messages"][0] == {"role": "system", "content": ""}


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, target, _ = tiny_pair()
    with serving(target, needs_key=True) as (url, _):
        with pytest.raises(UserError, match="answered 401; set the environment variable OPENAI_API_KEY"):
            served(url, target)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        subject = served(url, target)
        assert Greedy().attack(subject, rows, BUDGET).scores.mean() > 0.8
        assert KEY not in repr(vars(subject.endpoint))
    with pytest.raises(UserError, match="would be sent unencrypted"):
        Endpoint("http://example.com/v1", "served")
    Endpoint("https://example.com/v1", "served")


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://user:word@localhost"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--endpoint"):
        Endpoint(url, "served")


def test_a_server_that_is_not_there_is_an_error_that_says_so() -> None:
    _, target, _ = tiny_pair()
    with pytest.raises(UserError, match="is the server running"):
        served("http://127.0.0.1:9", target)
