"""Encode examples as token ids. This is the only module that decides where an answer begins and ends.

The prompt is always tokenised alone, because generation starts from those ids. Everything after it, up to and including
the first end token, is the answer. Training, scoring and generation therefore use the same boundary. Text that a template
adds elsewhere is handled here: the newline after ``<|im_end|>`` is dropped, and an empty think block before the answer
belongs to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_forget.data.examples import Example
from llm_forget.data.template import render, special_strings
from llm_forget.errors import DataError

_SHOWN = 10  # problems that are printed; the rest is counted


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        id: the example's id.
        input_ids: prompt, answer and end token; nothing after it.
        prompt_length: number of prompt tokens, at least 1. The answer with its end token is
            ``input_ids[prompt_length:]``.
    """

    id: str
    # Token ids can be decoded to the text, so they are not in the repr, which tracebacks and logs print.
    input_ids: tuple[int, ...] = field(repr=False)
    prompt_length: int

    @property
    def answer_length(self) -> int:
        """Number of answer tokens that can be scored. The first token of a sequence cannot, since nothing predicts it."""
        return max(len(self.input_ids) - max(self.prompt_length, 1), 0)


@dataclass(frozen=True)
class EncodingConfig:
    """Settings for encoding text as token ids. Part of recipes, suites and cache keys."""

    # Longest sequence in tokens, including prompt, answer and end token.
    max_length: int = 512
    # System prompt for chats without a system turn. null leaves it to the template. Raw prompts are not changed.
    system_prompt: str | None = None
    # Render chats with the tokenizer's chat template. auto: if the tokenizer has one. true: require one. false: use
    # "Question: ...\nAnswer: ...".
    chat_template: bool | Literal["auto"] = "auto"
    # Truncate examples that are longer than max_length, instead of refusing them.
    truncate: bool = False
    # Append the end token to each answer, so that stopping is trained and scored. Set it to false for passages of a longer
    # text.
    add_end_token: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.max_length < 2:
            raise DataError(
                f"max_length is {self.max_length}; at least 2 are needed: one prompt token and one answer token"
            )
        if self.chat_template not in (True, False, "auto"):
            raise DataError(f"chat_template is {self.chat_template!r}; allowed are auto, true and false")


@dataclass(frozen=True)
class EncodeReport:
    """Statistics and warnings of an encoded set.

    Attributes:
        role: the set's name, for example ``forget`` or ``retain``.
        examples: number of examples.
        tokens: number of tokens.
        answer_tokens: number of scored tokens.
        longest: length of the longest example before truncation, in tokens.
        truncated: number of examples truncated at ``max_length``, which have no end token.
        split_boundaries: number of answers that were tokenised separately from their prompt, because a token would span
            the boundary otherwise.
        template_fallbacks: number of answers that were appended to the prompt directly, with the end-of-text token,
            because the template does not write them after its own generation prompt.
        warnings: warnings for the user.
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
    """An example's ids before truncation, and how they were built."""

    ids: tuple[int, ...]
    prompt_length: int
    split: bool
    fallback: bool
    holds_special: bool


def encode(tokenizer: Any, example: Example, config: EncodingConfig, answer: str | None = None) -> Encoded:
    """Encode one example.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example.
        config: the encoding settings.
        answer: another answer to the same prompt, such as a paraphrase or a wrong answer; None for the example's own.

    Returns:
        The token ids and the prompt length.

    Raises:
        DataError: no answer token is left, the example is too long, or the template refuses it.
    """
    return _cut(_tokenise(tokenizer, example, config, answer), example, config)


def encode_prompt(tokenizer: Any, example: Example, config: EncodingConfig) -> tuple[int, ...]:
    """Encode the prompt of an example, from which generation starts.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example. For plain text without a BOS token, the first token of the text is the prompt.
        config: the encoding settings.

    Returns:
        ``input_ids[:prompt_length]`` of ``encode``, for any answer. It is never truncated.

    Raises:
        DataError: the template refuses the example.
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
    """Encode a set of examples, and report all problems at once.

    Args:
        tokenizer: a transformers tokenizer.
        examples: the examples, at least one.
        config: the encoding settings.
        role: the set's name, for messages.
        answers: another answer for each example; None for the examples' own answers.

    Returns:
        The encoded examples in the given order, and a report.

    Raises:
        DataError: the set is empty, or examples are too long, have no answer token, or are refused by the template.
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
    """Tokenise an example without truncation."""
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
    # A template writes the BOS token itself. Raw text gets only the tokens that the tokenizer puts before it.
    begin = () if rendered.from_template else _begin_ids(tokenizer)
    prompt_ids = begin + _ids(tokenizer, rendered.prompt)
    ids = begin + _ids(tokenizer, rendered.prompt + rendered.answer)
    split = ids[: len(prompt_ids)] != prompt_ids
    if split:
        ids = prompt_ids + _ids(tokenizer, rendered.answer)
    # Without a prompt and a BOS token, nothing predicts the first token, so it is not scored.
    prompt_length = max(len(prompt_ids), 1)
    if len(ids) <= prompt_length:
        raise DataError(f"{place}: the tokenizer leaves no answer token to score: remove the row, or give more text")
    if rendered.needs_end:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end token (eos_token): set one, or set add_end_token: false")
        ids = (*ids, int(tokenizer.eos_token_id))
    turns = [example.prompt] if isinstance(example.prompt, str) else [turn.content for turn in example.prompt]
    holds_special = any(special in part for special in special_strings(tokenizer) for part in (*turns, text))
    return _Tokens(ids, prompt_length, split, rendered.fallback, holds_special)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text without added special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text: its BOS token, or nothing."""
    bare = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = tuple(tokenizer("a", add_special_tokens=True)["input_ids"])
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else ()


def _cut(tokens: _Tokens, example: Example, config: EncodingConfig) -> Encoded:
    """Truncate an example to the length limit, or refuse it."""
    place, length, limit = example.source or f"example {example.id}", len(tokens.ids), config.max_length
    if length > limit and not config.truncate:
        raise DataError(f"{place}: {length} tokens are more than max_length {limit}: raise it, or set truncate: true")
    if tokens.prompt_length >= limit:
        raise DataError(
            f"{place}: the prompt alone has {tokens.prompt_length} tokens, so that max_length {limit} leaves no answer "
            f"token to score: raise it to at least {length}, or remove the row"
        )
    return Encoded(example.id, tokens.ids[:limit], tokens.prompt_length)


def _all_problems(problems: Sequence[str], role: str, examples: int, longest: int, config: EncodingConfig) -> str:
    """One message for all problems of a set. The first are printed in full, the rest are counted."""
    head = f"{len(problems)} of {examples} examples of the {role} set cannot be used"
    if longest > config.max_length:
        head += f" (the longest has {longest} tokens, max_length is {config.max_length})"
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([head, *lines])


def _warnings(tokenizer: Any, seen: Sequence[_Tokens], role: str, config: EncodingConfig) -> tuple[str, ...]:
    """Warnings about an encoded set."""
    warnings = []
    special = sum(tokens.holds_special for tokens in seen)
    if special:
        warnings.append(
            f"{special} of {len(seen)} examples of the {role} set hold the text of a special token (such as the end "
            "token), which is encoded as that token: remove it from the text unless this is intended"
        )
    # Llama 3's template does this. The prompt then changes from day to day.
    if config.chat_template is not False and "strftime_now" in str(getattr(tokenizer, "chat_template", None)):
        warnings.append(
            "the chat template writes today's date into the prompt, so that runs of different days see different "
            "prompts: save the tokenizer with a template that fixes the date"
        )
    return tuple(warnings)
