"""A model behind an OpenAI-compatible server, such as vLLM or ``transformers serve``, under attack.

Prompts are sent as token ids; a server that only has ``/chat/completions`` gets chat turns, and attacks that need more are left
out. The questions, and for log-probs the answers, of the forget set go to the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_forget.auditing.attack import Access
from llm_forget.auditing.forms import Form
from llm_forget.auditing.subject import Subject, Tokens
from llm_forget.data.encode import Encoded, EncodingConfig
from llm_forget.data.examples import Example
from llm_forget.evaluation.passes.served import score_served
from llm_forget.evaluation.tokens import TokenScores
from llm_forget.model.served import ServedModel
from llm_forget.utils.endpoint import Endpoint


class ServedSubject(Subject):
    """A model behind a server. What it allows is found out with one request each."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, encoding: EncodingConfig, form: Form) -> None:
        super().__init__(tokenizer, encoding, form)
        self.endpoint, self.served = endpoint, ServedModel(endpoint)
        self.access = Access.CHAT
        self._tokens = self.served.find_access(tuple(tokenizer("A few words.")["input_ids"]))
        if self._tokens:
            self.access |= Access.TOKENS
            if self.served.listed is not None:
                self.access |= Access.LOGPS
        else:
            body = {"messages": [{"role": "user", "content": "A few words."}], "max_tokens": 1}
            endpoint.post("chat/completions", body)  # a server with neither is an error that says why

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

    def _complete(self, prompts: Sequence[Tokens], max_new_tokens: int) -> list[str]:
        return self.served.complete(prompts, max_new_tokens=max_new_tokens)

    def _sampled(
        self, prompts: Sequence[Tokens], samples: int, max_new_tokens: int, seed: int, temperature: float
    ) -> list[list[str]]:
        return self.served.sample(
            prompts, samples=samples, max_new_tokens=max_new_tokens, seed=seed, temperature=temperature
        )

    def _score(self, given: Sequence[tuple[Tokens, int]]) -> list[TokenScores]:
        rows = [Encoded("row", tokens, start) for tokens, start in given]
        found = score_served(self.served, rows, vocabulary=len(self.tokenizer))
        return [found.row(index) for index in range(len(rows))]


def _message(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"] or "").strip()
