"""The model under attack, and what an attack may ask of it.

A subject remembers its answers and log-probs, so attacks that ask the same question share one pass. Attacks that change the
model do so inside ``changed()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from llm_forget.auditing.attack import Access
from llm_forget.auditing.forms import Form
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all, encode_prompt
from llm_forget.data.examples import Example, Message
from llm_forget.evaluation.passes.cached import score_rows
from llm_forget.evaluation.tokens import Floats, TokenScores
from llm_forget.model.generate import generate_answers, sample_answers
from llm_forget.model.limits import padding_id

Found = TypeVar("Found")
Tokens = tuple[int, ...]


class Subject(ABC):
    """One model in one form, local or behind a server.

    Attributes:
        tokenizer: its tokenizer.
        encoding: prompt template and lengths, as in the run's recipe.
        form: the form.
        access: what it allows.
        model: the loaded model in eval mode; None behind a server.
        adapted: whether ``model`` is a ``PeftModel`` whose adapter is what unlearning changed. Target and oracle have none.
        before: loads the model before unlearning; None if it is not known.
    """

    access: Access
    model: Any = None
    adapted: bool = False
    before: Callable[[], Any] | None = None

    def __init__(self, tokenizer: Any, encoding: EncodingConfig, form: Form) -> None:
        self.tokenizer, self.encoding, self.form = tokenizer, encoding, form
        self._known: dict[Any, Any] | None = {}

    # -- what attacks ask, by example

    def ask(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """(E) greedy answers to the examples' prompts."""
        return self.complete([self.prompt_of(one) for one in examples], max_new_tokens=max_new_tokens)

    def sample(
        self, examples: Sequence[Example], *, samples: int, max_new_tokens: int, seed: int, temperature: float = 1.0
    ) -> list[list[str]]:
        """(E, samples) sampled answers, each token from ``softmax(logits / temperature)`` over the whole vocabulary."""
        prompts = [self.prompt_of(one) for one in examples]
        return self._sampled(prompts, samples, max_new_tokens, seed, temperature)

    def score(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> TokenScores:
        """Token scores of the examples' answers, or of other answers to the same prompts; one row per example."""
        rows, report = encode_all(self.tokenizer, examples, self.encoding, role="forget", answers=answers)
        return self.score_tokens(rows).grouped(report.owners, len(examples))

    def probability(self, examples: Sequence[Example], answers: Sequence[str] | None = None) -> Floats:
        """(E,) geometric mean of the answers' token probabilities, in [0, 1]."""
        return np.exp(self.score(examples, answers).mean_logps())

    # -- the same by token

    def prompt_of(self, example: Example) -> Tokens:
        """Token ids from which the answer to an example begins."""
        return encode_prompt(self.tokenizer, example, self.encoding)

    def row_of(self, example: Example) -> Encoded:
        """Token ids of an example: ``input_ids[:prompt_length]`` is its prompt, the rest its answer with the end token."""
        return encode_all(self.tokenizer, [example], replace(self.encoding, truncate=True, chunk=False))[0][0]

    def complete(self, prompts: Sequence[Tokens], *, max_new_tokens: int) -> list[str]:
        """(P) greedy continuations of token ids, without the prompt."""
        key = ("complete", max_new_tokens)
        return self.remember(key, prompts, lambda missing: self._complete(missing, max_new_tokens))

    def score_tokens(self, rows: Sequence[Encoded]) -> TokenScores:
        """Token scores of ``input_ids[prompt_length:]`` of each row."""
        given = [(row.input_ids, row.prompt_length) for row in rows]
        parts = self.remember(("score",), given, lambda missing: self._score(missing))
        return _joined(parts)

    @contextmanager
    def changed(self, *, weights: bool = True) -> Iterator[Any]:
        """Context in which an attack may change the model. Nothing is remembered inside it.

        At the end the weights are restored, no weight requires a gradient, and the model is in eval mode. Adapters and hooks
        that the attack adds are its own to take off again, inside the context.

        Args:
            weights: keep a copy of the weights and restore them; False for an attack that leaves them as they are.

        Yields:
            The model.
        """
        kept = {name: value.detach().clone() for name, value in self.model.named_parameters()} if weights else {}
        known, self._known = self._known, None
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, value in self.model.named_parameters():
                    value.requires_grad_(False)
                    if name in kept and not torch.equal(value, kept[name]):
                        value.copy_(kept[name])
            self.model.eval()
            self._known = known

    # -- what a kind of subject must do

    @abstractmethod
    def _complete(self, prompts: Sequence[Tokens], max_new_tokens: int) -> list[str]: ...

    @abstractmethod
    def _sampled(
        self, prompts: Sequence[Tokens], samples: int, max_new_tokens: int, seed: int, temperature: float
    ) -> list[list[str]]: ...

    @abstractmethod
    def _score(self, given: Sequence[tuple[Tokens, int]]) -> list[TokenScores]: ...

    def remember(
        self, key: tuple[Any, ...], given: Sequence[Any], compute: Callable[[list[Any]], list[Found]]
    ) -> list[Found]:
        """Values of what is given: those that are not known yet under the key are computed in one pass."""
        known: dict[Any, Any] = {} if self._known is None else self._known
        missing = [one for one in dict.fromkeys(given) if (key, one) not in known]
        if missing:
            known.update({(key, one): value for one, value in zip(missing, compute(missing), strict=True)})
        return [known[key, one] for one in given]


class LoadedSubject(Subject):
    """A model in this process."""

    access = Access.CHAT | Access.TOKENS | Access.LOGPS | Access.WEIGHTS

    def __init__(
        self, model: Any, tokenizer: Any, encoding: EncodingConfig, form: Form, *, batch_size: int = 32
    ) -> None:
        super().__init__(tokenizer, encoding, form)
        self.model, self.batch_size = model.eval().requires_grad_(False), batch_size
        self.adapted = hasattr(model, "disable_adapter")

    def _complete(self, prompts: Sequence[Tokens], max_new_tokens: int) -> list[str]:
        return generate_answers(
            self.model, self.tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=self.batch_size
        )

    def _sampled(
        self, prompts: Sequence[Tokens], samples: int, max_new_tokens: int, seed: int, temperature: float
    ) -> list[list[str]]:
        return sample_answers(
            self.model,
            self.tokenizer,
            prompts,
            samples=samples,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
        )

    def _score(self, given: Sequence[tuple[Tokens, int]]) -> list[TokenScores]:
        rows = [Encoded("row", tokens, start) for tokens, start in given]
        found = score_rows(self.model, rows, pad_token_id=padding_id(self.tokenizer, self.model))
        return [found.row(index) for index in range(len(rows))]


def question(example: Example, text: str) -> Example:
    """The example with another last user turn; a system turn and earlier turns stay."""
    if isinstance(example.prompt, str):
        return replace(example, prompt=text)
    return replace(example, prompt=(*example.prompt[:-1], Message("user", text)))


def question_of(example: Example) -> str:
    """The last user turn of an example, or its raw prompt."""
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content


def _joined(parts: Sequence[TokenScores]) -> TokenScores:
    fields = ("token_logps", "hits", "vocab_mean", "vocab_std")
    columns = [np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0) for name in fields]
    offsets = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)], dtype=np.int64)
    return TokenScores(columns[0], columns[1].astype(bool), columns[2], columns[3], offsets)
