"""Examples to token ids, with the one place that decides where the answer begins and where it ends.

The prompt's ids are always the prompt tokenised by itself, because that is what generation starts from; whatever
follows them, up to and including the first end token, is the answer. So what is trained, scored and generated meets at
the same token. Templates write more than that: the newline after ``<|im_end|>`` is dropped, and an empty think block
before the answer belongs to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_forget.data.examples import Example
from llm_forget.data.template import render, special_strings
from llm_forget.errors import DataError

_SHOWN = 10  # problems that are printed one by one before the rest is counted


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        id: the example's id.
        input_ids: prompt, answer and end token; nothing after it.
        prompt_length: how many of them are prompt, at least 1: the answer, end token included, is
            ``input_ids[prompt_length:]``.
    """

    id: str
    # Token ids are the text: not in a repr, which tracebacks and logs print.
    input_ids: tuple[int, ...] = field(repr=False)
    prompt_length: int

    @property
    def answer_length(self) -> int:
        """How many answer tokens can be scored; the first token of a sequence cannot, since nothing predicts it."""
        return max(len(self.input_ids) - max(self.prompt_length, 1), 0)


@dataclass(frozen=True)
class EncodingConfig:
    """How text becomes token ids: part of a recipe, and of every cache key."""

    # Longest sequence in tokens: prompt, answer and end token together.
    max_length: int = 512
    # Text of a system turn for chats that have none; null leaves it to the template. Raw prompts are used as they are.
    system_prompt: str | None = None
    # Render chats with the tokenizer's template: "auto" where it has one, true to insist on it, false for
    # "Question: ...\nAnswer: ...".
    chat_template: bool | Literal["auto"] = "auto"
    # Cut examples that are longer than max_length at their end, instead of refusing them.
    truncate: bool = False
    # Close an answer with the end token, so that stopping is scored too. Set it to false for passages of a longer text,
    # which do not end where they are cut.
    add_end_token: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.max_length < 2:
            raise DataError(f"max_length is {self.max_length}; at least 2 are needed: one prompt and one answer token")
        if self.chat_template not in (True, False, "auto"):
            raise DataError(f"chat_template is {self.chat_template!r}; allowed are auto, true and false")


@dataclass(frozen=True)
class EncodeReport:
    """What happened to a set of examples on its way to token ids.

    Attributes:
        role: which set it is, ``forget`` or ``retain`` or another name.
        examples: how many there are.
        tokens: all their tokens.
        answer_tokens: those that are scored.
        longest: the longest example before any cut, in tokens.
        truncated: how many were cut at ``max_length``, and so have no end token.
        split_boundaries: how many answers were tokenised apart from their prompt, because together a token would reach
            over the boundary.
        template_fallbacks: how many answers the template does not write after its own generation prompt, so that
            they were put there by hand, with the end-of-text token.
        warnings: what is allowed and worth knowing.
    """

    role: str
    examples: int
    tokens: int
    answer_tokens: int
    longest: int
    truncated: int
    split_boundaries: int
    template_fallbacks: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    """An example's ids before any cut, and how they came about."""

    ids: tuple[int, ...]
    prompt_length: int
    split: bool
    fallback: bool
    holds_special: bool


def encode(tokenizer: Any, example: Example, config: EncodingConfig, answer: str | None = None) -> Encoded:
    """Turn one example into token ids.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example.
        config: how.
        answer: another answer to the same prompt (a paraphrase, a wrong one); None for the example's own.

    Returns:
        The ids, and where the answer begins.

    Raises:
        DataError: when no answer token is left, the example is too long, or the template refuses it.
    """
    return _cut(_tokenise(tokenizer, example, config, answer), example, config)


def encode_prompt(tokenizer: Any, example: Example, config: EncodingConfig) -> tuple[int, ...]:
    """Turn the prompt of an example into the ids that generation starts from.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example; of plain text without a BOS token the first token of the text is the prompt.
        config: how.

    Returns:
        Exactly ``input_ids[:prompt_length]`` of ``encode``, for whatever answer; not cut, since what is cut is the end.

    Raises:
        DataError: when the template refuses the example.
    """
    tokens = _tokenise(tokenizer, example, config, None)
    return tokens.ids[: tokens.prompt_length]


def encode_all(
    tokenizer: Any,
    examples: Sequence[Example],
    config: EncodingConfig,
    role: str = "forget",
    answers: Sequence[str | None] | None = None,
) -> tuple[list[Encoded], EncodeReport]:
    """Turn a set of examples into token ids, and report all problems at once.

    Args:
        tokenizer: a transformers tokenizer.
        examples: the examples, at least one.
        config: how.
        role: which set it is, for messages.
        answers: one other answer for each example; None for their own.

    Returns:
        The encoded examples in the given order, and what happened to them.

    Raises:
        DataError: for an empty set, and for examples that are too long, have no answer token, or that the template
            refuses.
    """
    if not examples:
        raise DataError(f"the {role} set is empty; at least one example is needed: check its path, split and limit")
    if answers is not None and len(answers) != len(examples):
        raise DataError(f"{len(answers)} answers were given for {len(examples)} examples of the {role} set")
    encoded: list[Encoded] = []
    seen: list[_Tokens] = []
    problems: list[str] = []
    for example, answer in zip(examples, answers or [None] * len(examples), strict=True):
        try:
            tokens = _tokenise(tokenizer, example, config, answer)
            seen.append(tokens)
            encoded.append(_cut(tokens, example, config))
        except DataError as error:
            problems.append(str(error))
    longest = max((len(tokens.ids) for tokens in seen), default=0)
    if problems:
        raise DataError(_all_problems(problems, role, len(examples), longest, config))
    return encoded, EncodeReport(
        role=role,
        examples=len(encoded),
        tokens=sum(len(row.input_ids) for row in encoded),
        answer_tokens=sum(len(row.input_ids) - row.prompt_length for row in encoded),
        longest=longest,
        truncated=sum(len(tokens.ids) > config.max_length for tokens in seen),
        split_boundaries=sum(tokens.split for tokens in seen),
        template_fallbacks=sum(tokens.fallback for tokens in seen),
        warnings=_warnings(tokenizer, seen, role, config),
    )


def _tokenise(tokenizer: Any, example: Example, config: EncodingConfig, answer: str | None) -> _Tokens:
    """The ids of an example, whole."""
    place = example.source or f"example {example.id}"
    text = example.answer if answer is None else answer
    if not text.strip():
        raise DataError(f"{place}: the answer is empty or only white space: there is no answer token to score")
    rendered = render(
        tokenizer,
        example.prompt,
        text,
        place=place,
        system_prompt=config.system_prompt,
        use_template=config.chat_template,
        end=config.add_end_token,
    )
    # A template writes the BOS token itself; raw text gets what the tokenizer puts before it, and only that.
    begin = () if rendered.from_template else _begin_ids(tokenizer)
    prompt_ids = begin + _ids(tokenizer, rendered.prompt)
    ids = begin + _ids(tokenizer, rendered.prompt + rendered.answer)
    split = ids[: len(prompt_ids)] != prompt_ids
    if split:
        ids = prompt_ids + _ids(tokenizer, rendered.answer)
    # Without a prompt and a BOS token the first token has nothing to predict it, and is not scored.
    prompt_length = max(len(prompt_ids), 1)
    if len(ids) <= prompt_length:
        raise DataError(f"{place}: the tokenizer leaves no answer token to score: take the row out, or give more text")
    if rendered.needs_end:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end token (eos_token): set one, or set add_end_token: false")
        ids = (*ids, int(tokenizer.eos_token_id))
    turns = [example.prompt] if isinstance(example.prompt, str) else [turn.content for turn in example.prompt]
    holds_special = any(special in part for special in special_strings(tokenizer) for part in (*turns, text))
    return _Tokens(ids, prompt_length, split, rendered.fallback, holds_special)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text as it stands, without anything that the tokenizer would add."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself: its BOS token, or nothing."""
    bare = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = tuple(tokenizer("a", add_special_tokens=True)["input_ids"])
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else ()


def _cut(tokens: _Tokens, example: Example, config: EncodingConfig) -> Encoded:
    """An example within the length limit."""
    place, length, limit = example.source or f"example {example.id}", len(tokens.ids), config.max_length
    if length > limit and not config.truncate:
        raise DataError(f"{place}: {length} tokens are more than max_length {limit}: raise it, or set truncate: true")
    if tokens.prompt_length >= limit:
        raise DataError(
            f"{place}: the prompt alone has {tokens.prompt_length} tokens, so that max_length {limit} leaves no answer "
            f"token to score: raise it to at least {length}, or take the row out"
        )
    return Encoded(example.id, tokens.ids[:limit], tokens.prompt_length)


def _all_problems(problems: Sequence[str], role: str, examples: int, longest: int, config: EncodingConfig) -> str:
    """All problems of a set in one message: the first in full, the rest by number."""
    head = f"{len(problems)} of {examples} examples of the {role} set cannot be used"
    if longest > config.max_length:
        head += f" (the longest has {longest} tokens, max_length is {config.max_length})"
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([head, *lines])


def _warnings(tokenizer: Any, seen: Sequence[_Tokens], role: str, config: EncodingConfig) -> tuple[str, ...]:
    """What is allowed and worth knowing about an encoded set."""
    warnings = []
    special = sum(tokens.holds_special for tokens in seen)
    if special:
        warnings.append(
            f"{special} of {len(seen)} examples of the {role} set hold the text of a special token (such as the end "
            "token), which is read as that token: take it out of the text unless that is meant"
        )
    # Llama 3's template does this: scores of another day would be of another prompt.
    if config.chat_template is not False and "strftime_now" in str(getattr(tokenizer, "chat_template", None)):
        warnings.append(
            "the chat template writes today's date into the prompt, so that runs of different days see different "
            "prompts: save the tokenizer with a template that fixes the date"
        )
    return tuple(warnings)
