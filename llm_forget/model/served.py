"""A causal language model behind a server that reads token ids, such as vLLM.

Prompts are sent as token ids to ``/completions``, so that server and library see the same tokens. The questions, and for
log-probs the answers, go to the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError, UserError
from llm_forget.model.limits import places_of
from llm_forget.utils.endpoint import Endpoint

Tokens = tuple[int, ...]
Progress = Callable[[int], None] | None

LISTED = 20  # likeliest tokens at each place of a prompt; vLLM's own limit


@dataclass(frozen=True)
class Place:
    """What a server tells of one token of a prompt.

    Attributes:
        logp: its log-prob in nats.
        listed: the log-probs of the likeliest tokens at its place, and its own; empty if the server lists none.
    """

    logp: float
    listed: tuple[float, ...] = ()

    @property
    def hit(self) -> bool:
        """Whether the token is the likeliest one, as far as the server tells."""
        return len(self.listed) > 1 and self.logp >= max(self.listed)


class ServedModel:
    """One model of a server.

    Args:
        endpoint: where it is.
        settings: entries of every request, such as ``stop_token_ids``; not every server knows vLLM's own.

    Attributes:
        listed: how many of the likeliest tokens the server lists at each place of a prompt; None if it gives no log-probs,
            or if ``find_access`` was not called.
        length: the longest row that the server reads, in tokens; None if it does not say.
    """

    def __init__(self, endpoint: Endpoint, settings: Mapping[str, Any] | None = None) -> None:
        self.endpoint, self.settings = endpoint, dict(settings or {})
        self.listed: int | None = None
        self.length: int | None = None

    def find_access(self, probe: Tokens) -> bool:
        """Find out with a few requests what the server allows. Returns whether it reads token ids."""
        if not _allows(lambda: self._choice(probe, max_tokens=1)["text"]):
            return False
        self.listed = next((listed for listed in (LISTED, 0) if self._allows_logps(probe, listed)), None)
        return True

    def find_length(self) -> None:
        """Read the longest row from the server's list of models.

        Raises:
            UserError: the model is not in that list.
        """
        models, name, option = self.endpoint.models(), self.endpoint.model, self.endpoint.options[1]
        if name not in models:
            raise UserError(f"the server has no model {name!r}; set {option} to one of {', '.join(sorted(models))}")
        # an adapter has the length of its base
        stated = (models[name], models.get(str(models[name].get("parent")), {}))
        self.length = next((int(one["max_model_len"]) for one in stated if one.get("max_model_len")), None)

    def check_rows(self, rows: Sequence[Encoded], role: str) -> None:
        """Check that the server can read rows.

        Raises:
            DataError: a row and the one token that each request asks for are longer than the server reads.
        """
        long = [row for row in rows if self.length is not None and len(row.input_ids) >= self.length]
        if long:
            raise DataError(
                f"{len(long)} of {len(rows)} rows of the {role} set are too long for the server, which reads {self.length} "
                f"tokens with one of its answer (at {places_of(long)}): start it with a larger --max-model-len, or lower "
                "encoding.max_length"
            )

    def complete(self, prompts: Sequence[Tokens], *, max_new_tokens: int, progress: Progress = None) -> list[str]:
        """(P) greedy continuations of token ids, without the prompts and surrounding white space."""
        bodies = [self._body(one, max_tokens=max_new_tokens) for one in prompts]
        replies = self.endpoint.all_of("completions", bodies, progress)
        return [str(reply["choices"][0]["text"]).strip() for reply in replies]

    def sample(
        self,
        prompts: Sequence[Tokens],
        *,
        samples: int,
        max_new_tokens: int,
        seed: int,
        temperature: float = 1.0,
        progress: Progress = None,
    ) -> list[list[str]]:
        """(P, samples) continuations, each token from ``softmax(logits / temperature)`` over the whole vocabulary."""
        how = {"temperature": temperature, "top_p": 1, "max_tokens": max_new_tokens, "n": samples, "seed": seed}
        report = None if progress is None else lambda count: progress(count * samples)
        replies = self.endpoint.all_of("completions", [self._body(one, **how) for one in prompts], report)
        return [[str(choice["text"]).strip() for choice in reply["choices"]] for reply in replies]

    def places(self, given: Sequence[Tokens], progress: Progress = None) -> list[list[Place]]:
        """For each row of token ids, what the server tells of each token after the first.

        Raises:
            UserError: the server gives no log-probs of prompts.
        """
        if self.listed is None:
            raise UserError(f"{self.endpoint.url} gives no log-probs of prompts; take a server that does, such as vLLM")
        bodies = [self._body(one, max_tokens=1, prompt_logprobs=self.listed) for one in given]
        replies = self.endpoint.all_of("completions", bodies, progress)
        return [self._read(one, reply["choices"][0]) for one, reply in zip(given, replies, strict=True)]

    def _allows_logps(self, probe: Tokens, listed: int) -> bool:
        return _allows(lambda: self._read(probe, self._choice(probe, max_tokens=1, prompt_logprobs=listed)))

    def _read(self, tokens: Tokens, choice: Any) -> list[Place]:
        """Places from vLLM's ``prompt_logprobs``, or from ``echo`` of the completions interface, which lists no other tokens."""
        rows = choice.get("prompt_logprobs")
        if rows:
            pairs = zip(rows[1:], tokens[1:], strict=True)
            return [
                Place(float(row[str(token)]["logprob"]), tuple(float(one["logprob"]) for one in row.values()))
                for row, token in pairs
            ]
        echoed = self._choice(tokens, max_tokens=1, echo=True, logprobs=1)["logprobs"]["token_logprobs"][
            1 : len(tokens)
        ]
        if len(echoed) != len(tokens) - 1:
            raise KeyError("token_logprobs")
        return [Place(float(value)) for value in echoed]

    def _body(self, tokens: Tokens, **settings: Any) -> dict[str, Any]:
        return {"prompt": list(tokens), "temperature": 0, **self.settings, **settings}

    def _choice(self, tokens: Tokens, **settings: Any) -> Any:
        return self.endpoint.post("completions", self._body(tokens, **settings))["choices"][0]


def _allows(request: Callable[[], Any]) -> bool:
    try:
        request()
    except (UserError, KeyError, IndexError, TypeError, ValueError):
        return False
    return True
