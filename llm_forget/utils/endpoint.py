"""Requests to one model behind an OpenAI-compatible server, such as vLLM or ``transformers serve``.

The key is read from an environment variable when a request is sent, and is in no message or file.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from llm_forget.errors import UserError

_PATIENCE = 300.0  # seconds until a request counts as failed
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MOST_BYTES = 64 << 20  # of one reply
_PAUSES = (0.1, 0.5, 2.0)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *given: Any) -> None:
        return None


class Endpoint:
    """Requests to one model of a server.

    Args:
        url: the server, with or without ``/v1``.
        model: the served model's name.
        key_variable: the environment variable with the key; it need not be set for a server without keys.
        options: the options with which a user gives ``url`` and ``model``, for messages.
        at_once: requests at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        *,
        options: tuple[str, str] = ("--endpoint", "--served-model"),
        at_once: int = 8,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{options[0]} {url!r} is no address of a server; give http://HOST:PORT/v1 or https://HOST/v1"
            )
        if parts.username or parts.password:
            raise UserError(f"{options[0]} holds a password; put the key into the environment variable {key_variable}")
        if os.environ.get(key_variable) and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise UserError(
                f"the key in {key_variable} would be sent unencrypted to {parts.hostname}; use https, or unset the variable"
            )
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        self.model, self.key_variable, self.options, self.at_once = model, key_variable, options, at_once
        self._opener = urllib.request.build_opener(_NoRedirects)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a request and read the reply.

        Raises:
            UserError: the server cannot be reached, refuses, or answers with something else than JSON.
        """
        text = self.send(path, json.dumps({"model": self.model, **body}).encode())
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._no_answer(path, error) from None

    def send(self, path: str, content: bytes | None = None, pauses: Sequence[float] = _PAUSES) -> str:
        """Send a request with JSON, or without content, and return the reply's text.

        Args:
            path: below the server's ``/v1``.
            content: the JSON; None asks without one.
            pauses: seconds before each further try if a server with a short queue resets the connection.

        Raises:
            UserError: the server cannot be reached, or refuses.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/{path}", content, headers)
        try:
            with self._opener.open(request, timeout=_PATIENCE) as reply:
                return str(reply.read(_MOST_BYTES).decode())
        except urllib.error.HTTPError as error:  # its body may quote the request
            raise UserError(f"{self.url}/{path} answered {error.code}{self._advice(error.code)}") from None
        except (OSError, HTTPException, ValueError) as error:
            if not pauses or not isinstance(getattr(error, "reason", error), ConnectionResetError):
                raise self._no_answer(path, error) from None
        time.sleep(pauses[0])
        return self.send(path, content, pauses[1:])

    def models(self) -> dict[str, dict[str, Any]]:
        """Name → what the server says of it, for the models and adapters that it serves.

        Raises:
            UserError: the server does not list them.
        """
        text = self.send("models")
        try:
            return {str(one["id"]): dict(one) for one in json.loads(text)["data"]}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.url}/models did not list models; is it a vLLM server?") from None

    def _no_answer(self, path: str, error: Exception) -> UserError:
        return UserError(f"{self.url}/{path} gave no answer ({type(error).__name__}); is the server running?")

    def _advice(self, code: int) -> str:
        if code in (401, 403):
            return f"; set the environment variable {self.key_variable} to the server's key"
        if code >= 500:
            return "; see the server's log. vLLM on a CPU fails if it gets several requests for an adapter's log-probs at once"
        return f"; check {self.options[1]} and the server's log" if code in (400, 404, 422) else ""

    def all_of(
        self, path: str, bodies: Sequence[Mapping[str, Any]], progress: Callable[[int], None] | None = None
    ) -> list[Any]:
        """Send requests, several at once, and return the replies in order. ``progress`` is called with 1 after each."""
        replies = []
        with ThreadPoolExecutor(self.at_once) as pool:
            for reply in pool.map(lambda body: self.post(path, body), bodies):
                replies.append(reply)
                if progress is not None:
                    progress(1)
        return replies
