"""A small server that speaks the part of vLLM's interface that deploying needs, over a real base and real adapters.

It follows vLLM's documentation: ``/v1/models`` lists adapters with ``root`` and ``parent``, ``/v1/load_lora_adapter`` refuses a
name that is served unless ``load_inplace`` is given, and ``prompt_logprobs`` has one entry per token, the first being null.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from local_servers import JsonHandler, serving_http
from transformers import AutoModelForCausalLM

from llm_forget.adapters.lora import load_adapter
from llm_forget.model.adapted import attach_adapter


@dataclass
class FakeVllm:
    """What the server holds.

    Attributes:
        base: folder of the base.
        adapters: name → folder of the adapters that are served.
        ignores: serve the base under every name, as a server that drops adapters would.
        inplace: whether it knows ``load_inplace``.
    """

    base: Path
    adapters: dict[str, str] = field(default_factory=dict)
    ignores: bool = False
    inplace: bool = True
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.heard.append(json.dumps(body))
        if path == "/v1/models":
            found = [{"id": name, "root": root, "parent": "base"} for name, root in self.adapters.items()]
            return 200, {"data": [{"id": "base", "root": str(self.base), "parent": None}, *found]}
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters and not (self.inplace and body.get("load_inplace")):
                return 400, {"error": "already loaded"}
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            return (200, "Success") if self.adapters.pop(body["lora_name"], None) else (404, {"error": "not loaded"})
        if path == "/v1/completions" and body["model"] in self.adapters:
            with self.lock:
                return 200, {"choices": [self._complete(body)]}
        return 404, {"error": "no such thing"}

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(self.base).eval()
        if not self.ignores:
            model = attach_adapter(model, load_adapter(Path(self.adapters[body["model"]]))).eval()
        ids = body["prompt"]
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows = [{str(token): {"logprob": float(logps[place, token])}} for place, token in enumerate(ids[1:])]
        return {"text": " x", "prompt_logprobs": [None, *rows]}


@contextmanager
def serving_fake(fake: FakeVllm) -> Iterator[str]:
    """Serve on a free loopback port. Returns the address."""

    class Handler(JsonHandler):
        def answer(self, body: Any) -> tuple[int, Any]:
            return fake.answer(self.path, body)

    with serving_http(Handler) as url:
        yield url
