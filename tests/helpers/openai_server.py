"""An OpenAI-compatible server over a loaded model, as vLLM answers an audit: completions with prompt log-probs, and chat."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from audited import qa
from local_servers import JsonHandler, serving_http

from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.examples import Message

KEY = "sk-not-to-be-written"


class Handler(JsonHandler):
    """The completions and chat interfaces of an OpenAI-compatible server over a loaded model."""

    subject: LoadedSubject
    paths: tuple[str, ...]
    needs_key = False
    length = 128  # tokens that it reads
    seen: list[dict[str, Any]]

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.seen.append(body)
        if self.needs_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            return 401, {"error": "no key"}
        if self.path == "/v1/models":
            parent = {"id": "base", "max_model_len": self.length}
            return 200, {"data": [parent, {"id": "served", "parent": "base", "max_model_len": None}]}
        if self.path not in self.paths or body["model"] != "served":
            return 404, {"error": "not here"}
        return 200, (self.chat if "chat" in self.path else self.completions)(body)

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = tuple(body["prompt"])
        with LOCK:
            text = self.subject.complete([ids], max_new_tokens=body["max_tokens"])[0]
            rows = [None, *self.scored(ids, body.get("prompt_logprobs", 0))]
        choice = {"text": text, **({"prompt_logprobs": rows} if "prompt_logprobs" in body else {})}
        return {"choices": [choice] * body.get("n", 1)}

    def scored(self, ids: tuple[int, ...], listed: int) -> list[dict[str, dict[str, float]]]:
        """For each token after the first its log-prob and those of the likeliest ones."""
        with torch.no_grad():
            logps = self.subject.model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        rows = []
        for own, token in zip(logps, ids[1:], strict=True):
            places = [token, *(own.topk(listed).indices.tolist() if listed else [])]
            rows.append({str(place): {"logprob": float(own[place])} for place in places})
        return rows

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        turns = tuple(Message(one["role"], one["content"]) for one in body["messages"])
        row = qa(turns[-1].content, "-")
        with LOCK:
            text = self.subject.ask([row], max_new_tokens=body["max_tokens"])[0]
        return {"choices": [{"message": {"role": "assistant", "content": text}}]}


LOCK = threading.Lock()
ALL = ("/v1/completions", "/v1/chat/completions")


@contextmanager
def serving(
    subject: LoadedSubject, paths: tuple[str, ...] = ALL, *, needs_key: bool = False
) -> Iterator[tuple[str, list[Any]]]:
    seen: list[Any] = []
    handler = type("Own", (Handler,), {"subject": subject, "paths": paths, "needs_key": needs_key, "seen": seen})
    with serving_http(handler) as url:
        yield url, seen
