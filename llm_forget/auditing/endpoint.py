"""A model behind an OpenAI-compatible server, such as vLLM or ``transformers serve``.

Prompts are sent as token ids to ``/completions``, so that server and library see the same tokens; a server that only has
``/chat/completions`` gets chat turns, and attacks that need more are left out. The key is read from an environment variable
when a request is sent, and is in no message or file. The questions, and for log-probs the answers, of the forget set go to
the server.
"""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import numpy as np

from llm_forget.auditing.attack import Access
from llm_forget.auditing.forms import Form
from llm_forget.auditing.subject import Subject, Tokens
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import Example
from llm_forget.errors import UserError
from llm_forget.evaluation.tokens import TokenScores

_PATIENCE = 300.0  # seconds until a request counts as failed
_LOCAL = ("localhost", "127.0.0.1", "::1")
_WORKERS = 8  # requests at once
_MOST_BYTES = 64 << 20  # of one reply
_LISTED = 20  # likeliest tokens at each place of a prompt; vLLM's own limit


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
    """

    def __init__(self, url: str, model: str, key_variable: str = "OPENAI_API_KEY") -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"--endpoint {url!r} is no address of a server; give http://HOST:PORT/v1 or https://HOST/v1"
            )
        if parts.username or parts.password:
            raise UserError(f"--endpoint holds a password; put the key into the environment variable {key_variable}")
        if os.environ.get(key_variable) and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise UserError(
                f"the key in {key_variable} would be sent unencrypted to {parts.hostname}; use https, or unset the variable"
            )
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        self.model, self.key_variable = model, key_variable
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

    def send(self, path: str, content: bytes | None = None) -> str:
        """Send a request with JSON, or without content, and return the reply's text.

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
            raise UserError(
                f"{self.url}/{path} answered {error.code}{_advice(error.code, self.key_variable)}"
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._no_answer(path, error) from None

    def _no_answer(self, path: str, error: Exception) -> UserError:
        return UserError(f"{self.url}/{path} gave no answer ({type(error).__name__}); is the server running?")

    def all_of(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Send requests, several at once, and return the replies in order."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))


def _advice(code: int, variable: str) -> str:
    if code in (401, 403):
        return f"; set the environment variable {variable} to the server's key"
    return "; check --served-model and the server's log" if code in (400, 404, 422) else ""


class ServedSubject(Subject):
    """A model behind a server. What it allows is found out with one request each."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, encoding: EncodingConfig, form: Form) -> None:
        super().__init__(tokenizer, encoding, form)
        self.endpoint = endpoint
        self.access, self._listed = Access.CHAT, _LISTED
        probe = tuple(tokenizer("A few words.")["input_ids"])
        self._tokens = self._allows(lambda: self._choices(probe, max_tokens=1)[0]["text"])
        if self._tokens:
            self.access |= Access.TOKENS
            for self._listed in (_LISTED, 0):
                if self._allows(lambda: self._logps(probe)):
                    self.access |= Access.LOGPS
                    break
        else:
            body = {"messages": [{"role": "user", "content": "A few words."}], "max_tokens": 1}
            endpoint.post("chat/completions", body)  # a server with neither is an error that says why

    @staticmethod
    def _allows(request: Any) -> bool:
        try:
            request()
        except (UserError, KeyError, IndexError, TypeError):
            return False
        return True

    def ask(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Greedy answers: from token ids if the server reads them, otherwise from chat turns."""
        if self._tokens:
            return super().ask(examples, max_new_tokens=max_new_tokens)
        bodies = [self._chat(one, max_new_tokens, temperature=0) for one in examples]
        return [_message(reply) for reply in self.endpoint.all_of("chat/completions", bodies)]

    def sample(
        self, examples: Sequence[Example], *, samples: int, max_new_tokens: int, seed: int, temperature: float = 1.0
    ) -> list[list[str]]:
        """Sampled answers, likewise."""
        if self._tokens:
            return super().sample(
                examples, samples=samples, max_new_tokens=max_new_tokens, seed=seed, temperature=temperature
            )
        bodies = [
            self._chat(one, max_new_tokens, temperature=temperature, seed=seed + number)
            for one in examples
            for number in range(samples)
        ]
        said = [_message(reply) for reply in self.endpoint.all_of("chat/completions", bodies)]
        return [said[start : start + samples] for start in range(0, len(said), samples)]

    def _chat(self, example: Example, max_new_tokens: int, **more: Any) -> dict[str, Any]:
        turns = example.prompt
        if isinstance(turns, str):
            messages = [{"role": "user", "content": turns}]
        else:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        system = self.encoding.system_prompt
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        return {"messages": messages, "max_tokens": max_new_tokens, **more}

    def _choices(self, tokens: Tokens, **settings: Any) -> list[Any]:
        found = self.endpoint.post("completions", {"prompt": list(tokens), "temperature": 0, **settings})["choices"]
        return list(found)

    def _complete(self, prompts: Sequence[Tokens], max_new_tokens: int) -> list[str]:
        bodies = [{"prompt": list(one), "temperature": 0, "max_tokens": max_new_tokens} for one in prompts]
        return [str(reply["choices"][0]["text"]).strip() for reply in self.endpoint.all_of("completions", bodies)]

    def _sampled(
        self, prompts: Sequence[Tokens], samples: int, max_new_tokens: int, seed: int, temperature: float
    ) -> list[list[str]]:
        body = {"temperature": temperature, "top_p": 1, "max_tokens": max_new_tokens, "n": samples, "seed": seed}
        replies = self.endpoint.all_of("completions", [{"prompt": list(one), **body} for one in prompts])
        return [[str(choice["text"]).strip() for choice in reply["choices"]] for reply in replies]

    def _score(self, given: Sequence[tuple[Tokens, int]]) -> list[TokenScores]:
        with ThreadPoolExecutor(_WORKERS) as pool:
            rows = list(pool.map(lambda one: self._logps(one[0]), given))
        found = []
        for (tokens, start), scored in zip(given, rows, strict=True):
            own = scored[max(start, 1) - 1 : len(tokens) - 1]
            logps = np.array([one for one, _ in own], dtype=np.float64)
            spread = [listed_moments(listed, len(self.tokenizer)) for _, listed in own]
            mean, std = (np.array([one[place] for one in spread], dtype=np.float64) for place in (0, 1))
            hits = np.array([len(listed) > 1 and one >= max(listed) for one, listed in own], dtype=np.bool_)
            found.append(TokenScores(logps, hits, mean, std, np.array([0, len(own)], dtype=np.int64)))
        return found

    def _logps(self, tokens: Tokens) -> list[tuple[float, list[float]]]:
        """Log-prob of each token after the first, and those of the likeliest tokens at its place if the server lists them.

        They are from vLLM's ``prompt_logprobs``, or from ``echo`` of the completions interface, which lists none.
        """
        choice = self._choices(tokens, max_tokens=1, prompt_logprobs=self._listed)[0]
        rows = choice.get("prompt_logprobs")
        if rows:
            pairs = zip(rows[1:], tokens[1:], strict=True)
            return [
                (float(row[str(token)]["logprob"]), [float(one["logprob"]) for one in row.values()])
                for row, token in pairs
            ]
        choice = self._choices(tokens, max_tokens=1, echo=True, logprobs=1)[0]
        echoed = choice["logprobs"]["token_logprobs"][1 : len(tokens)]
        if len(echoed) != len(tokens) - 1:
            raise KeyError("token_logprobs")
        return [(float(value), []) for value in echoed]


def listed_moments(listed: Sequence[float], vocabulary: int) -> tuple[float, float]:
    """Mean and standard deviation of log p(v) for v drawn from p, from the likeliest tokens; the others share the rest evenly.

    Args:
        listed: log-probs of some tokens, in nats.
        vocabulary: number of all tokens.

    Returns:
        In nats; NaN if less than two tokens are listed. p = ½, ¼ and four others with 1/16 each give −2 ln 2 and √1.5 ln 2.
    """
    if len(listed) < 2:
        return math.nan, math.nan
    values = np.asarray(listed, dtype=np.float64)
    shares = np.exp(values)
    rest, others = 1 - float(shares.sum()), vocabulary - len(values)
    if rest > 0 and others > 0:
        values, shares = np.append(values, math.log(rest / others)), np.append(shares, rest)
    mean = float((shares * values).sum())
    return mean, math.sqrt(float((shares * (values - mean) ** 2).sum()))


def _message(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"] or "").strip()
