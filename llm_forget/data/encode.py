"""Encode examples as token ids. This is the only module that decides where an answer begins and ends.

The prompt is always tokenised alone, because generation starts from those ids. Everything after it, up to and including
the first end token, is the answer. Training, scoring and generation therefore use the same boundary. Text that a template
adds elsewhere is handled here: the newline after ``<|im_end|>`` is dropped, and an empty think block before the answer
belongs to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from llm_forget.data.encode_report import EncodeReport, warnings_about
from llm_forget.data.examples import Example
from llm_forget.data.template import Layout, render, special_strings
from llm_forget.errors import DataError

_SHOWN = 10  # problems that are printed; the rest is counted
# Longest text in characters per token of max_length. Longer texts are refused or cut before they are tokenised, which would
# take minutes and gigabytes for a text of some megabytes.
_CHARACTERS = 64


@dataclass(frozen=True)
class Encoded:
    """One row of token ids: an example, or a part of a long one.

    Attributes:
        id: the example's id.
        input_ids: prompt, answer and end token; nothing after it.
        prompt_length: number of tokens that are not scored, at least 1. The answer with its end token is
            ``input_ids[prompt_length:]``.
        part: 0, or the part's number if the example was cut into several rows.
        source: where the example was read, for messages.
    """

    id: str
    # Token ids can be decoded to the text, so they are not in the repr, which tracebacks and logs print.
    input_ids: tuple[int, ...] = field(repr=False)
    prompt_length: int
    part: int = field(default=0, repr=False)
    source: str = field(default="", repr=False, compare=False)

    @property
    def answer_length(self) -> int:
        """Number of answer tokens that can be scored. The first token of a sequence cannot, since nothing predicts it."""
        return max(len(self.input_ids) - max(self.prompt_length, 1), 0)

    @property
    def place(self) -> str:
        """The location of the example for messages, or its id if it was created in memory."""
        return self.source or f"example {self.id}"


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
    # Cut examples that are longer than max_length into several rows. Each row continues where the one before ended, so that
    # every token of a long document is used once.
    chunk: bool = False
    # Append the end token to each answer, so that stopping is trained and scored. Set it to false for passages of a longer
    # text.
    add_end_token: bool = True
    # The date (YYYY-MM-DD) for chat templates that write today's date into the prompt, as Llama 3's does. null: today.
    date: str | None = "2024-07-26"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.max_length < 2:
            raise DataError(
                f"max_length is {self.max_length}; at least 2 are needed: one prompt token and one answer token"
            )
        if self.chat_template not in (True, False, "auto"):
            raise DataError(f"chat_template is {self.chat_template!r}; allowed are auto, true and false")
        if self.truncate and self.chunk:
            raise DataError("truncate and chunk are both true; chunk keeps all of a long example: set one of the two")
        if self.date is not None:
            try:
                date.fromisoformat(self.date)
            except ValueError:
                raise DataError(f"date is {self.date!r}; give a day as YYYY-MM-DD, or null for today") from None

    @property
    def most_characters(self) -> int:
        """The longest text that is tokenised; a longer one cannot fit into ``max_length``."""
        return _CHARACTERS * self.max_length


@dataclass(frozen=True)
class _Tokens:
    """An example's ids before truncation, and how they were built."""

    ids: tuple[int, ...]
    prompt_length: int
    split: bool
    fallback: bool
    closed: bool
    holds_special: bool
    unread: int  # tokens of a text that was cut before it was tokenised, estimated

    @property
    def length(self) -> int:
        return len(self.ids) + self.unread


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
        DataError: no answer token is left, the example is too long for one row, or the template refuses it.
    """
    rows = _rows(_tokenise(tokenizer, example, config, answer), example, config, ())
    if len(rows) > 1:
        raise DataError(
            f"{rows[0].place}: the example has {len(rows)} rows of max_length {config.max_length}: use encode_all"
        )
    return rows[0]


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
        The rows in the order of the examples, one each unless ``config.chunk`` cuts long examples into parts, and a report;
        ``report.owners`` says which example a row is of.

    Raises:
        DataError: the set is empty, or examples are too long, have no answer token, or are refused by the template.
    """
    if not examples:
        raise DataError(f"the {role} set is empty; at least one example is needed: check its path, split and limit")
    if answers is not None and len(answers) != len(examples):
        raise DataError(f"{len(answers)} answers were given for {len(examples)} examples of the {role} set")
    _check_system_prompt(config)
    begin = _begin_ids(tokenizer)
    rows: list[Encoded] = []
    owners: list[int] = []
    seen: list[_Tokens] = []
    problems: list[str] = []
    for index, (example, answer) in enumerate(zip(examples, answers or [None] * len(examples), strict=True)):
        try:
            tokens = _tokenise(tokenizer, example, config, answer)
            seen.append(tokens)
            found = _rows(tokens, example, config, begin)
            rows += found
            owners += [index] * len(found)
        except DataError as error:
            problems.append(str(error))
    if problems:
        longest = max((tokens.length for tokens in seen), default=0)
        raise DataError(_all_problems(problems, role, len(examples), longest, config))
    report = _counted(seen, rows, owners, role, config)
    # Llama 3's template does this. The prompt then changes from day to day.
    dated = config.date is None and config.chat_template is not False
    warnings = warnings_about(
        report,
        max_length=config.max_length,
        special=sum(tokens.holds_special for tokens in seen),
        dated=dated and "strftime_now" in str(getattr(tokenizer, "chat_template", None)),
    )
    return rows, replace(report, warnings=warnings)


def _counted(
    seen: Sequence[_Tokens], rows: Sequence[Encoded], owners: Sequence[int], role: str, config: EncodingConfig
) -> EncodeReport:
    """The report of a set, without warnings."""
    long = [tokens for tokens in seen if tokens.length > config.max_length]
    return EncodeReport(
        role=role,
        examples=len(seen),
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        answer_tokens=sum(len(row.input_ids) - row.prompt_length for row in rows),
        longest=max(tokens.length for tokens in seen),
        truncated=0 if config.chunk else len(long),
        cut_tokens=0 if config.chunk else sum(tokens.length - config.max_length for tokens in long),
        chunked=len(long) if config.chunk else 0,
        split_boundaries=sum(tokens.split for tokens in seen),
        template_fallbacks=sum(tokens.fallback for tokens in seen),
        closed_blocks=sum(tokens.closed for tokens in seen),
        owners=tuple(owners),
    )


def _tokenise(tokenizer: Any, example: Example, config: EncodingConfig, answer: str | None) -> _Tokens:
    """Tokenise an example without truncation."""
    place = example.source or f"example {example.id}"
    text = example.answer if answer is None else answer
    if not text.strip():
        raise DataError(f"{place}: the answer is empty or only white space: there is no answer token to score")
    _check_characters(example, text, place, config)
    kept = text if config.chunk else text[: config.most_characters]
    layout = Layout(config.system_prompt, config.chat_template, config.add_end_token, config.date)
    rendered = render(
        tokenizer, example.prompt, kept, layout, place=place, own=None if answer is None else example.answer
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
    holds_special = any(special in part for special in special_strings(tokenizer) for part in (*_texts(example), kept))
    # as many tokens per character as in the part that was read
    unread = round((len(text) - len(kept)) * (len(ids) - prompt_length) / max(len(kept), 1))
    return _Tokens(ids, prompt_length, split, rendered.fallback, rendered.closed, holds_special, unread)


def _texts(example: Example) -> list[str]:
    """The texts of the prompt."""
    return [example.prompt] if isinstance(example.prompt, str) else [turn.content for turn in example.prompt]


def _check_system_prompt(config: EncodingConfig) -> None:
    """Refuse a system prompt that cannot fit into a row."""
    if config.system_prompt is not None and len(config.system_prompt) > config.most_characters:
        raise DataError(
            f"encoding.system_prompt has {len(config.system_prompt):,} characters, which do not fit into max_length "
            f"{config.max_length} tokens: shorten it, or raise max_length"
        )


def _check_characters(example: Example, answer: str, place: str, config: EncodingConfig) -> None:
    """Refuse texts that are far too long before they are tokenised. An answer may be long if it is cut or truncated."""
    _check_system_prompt(config)
    most = config.most_characters
    prompt = sum(len(text) for text in _texts(example))
    if prompt > most:
        raise DataError(
            f"{place}: the prompt has {prompt:,} characters, which do not fit into max_length {config.max_length} tokens: "
            "shorten it, raise max_length, or remove the row"
        )
    if len(answer) > most and not (config.truncate or config.chunk):
        raise DataError(
            f"{place}: {len(answer):,} characters do not fit into max_length {config.max_length} tokens: raise it, set "
            "chunk: true to cut the example into rows, or set truncate: true"
        )


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text without added special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text: its BOS token, or nothing."""
    bare = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = tuple(tokenizer("a", add_special_tokens=True)["input_ids"])
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else ()


def _rows(tokens: _Tokens, example: Example, config: EncodingConfig, begin: tuple[int, ...]) -> list[Encoded]:
    """The rows of an example: one, or several parts of a long one, or an error.

    Each part begins with what the tokenizer puts before any text or, if that is nothing, with the last token of the part
    before. So each token of the answer is scored exactly once.
    """
    place, limit, ids = example.source or f"example {example.id}", config.max_length, tokens.ids
    if tokens.length > limit and not (config.truncate or config.chunk):
        raise DataError(
            f"{place}: {tokens.length} tokens are more than max_length {limit}: raise it, set chunk: true to cut long "
            "examples into rows, or set truncate: true"
        )
    if tokens.prompt_length >= limit:
        raise DataError(
            f"{place}: the prompt alone has {tokens.prompt_length} tokens, so that max_length {limit} leaves no answer "
            f"token to score: raise it to at least {tokens.length}, or remove the row"
        )
    if tokens.length <= limit or config.truncate:
        return [Encoded(example.id, ids[:limit], tokens.prompt_length, source=example.source)]
    rows = [Encoded(example.id, ids[:limit], tokens.prompt_length, part=1, source=example.source)]
    start = limit
    while start < len(ids):
        head = begin if 0 < len(begin) < limit else (ids[start - 1],)
        stop = start + limit - len(head)
        rows.append(Encoded(example.id, head + ids[start:stop], len(head), part=len(rows) + 1, source=example.source))
        start = stop
    return rows


def _all_problems(problems: Sequence[str], role: str, examples: int, longest: int, config: EncodingConfig) -> str:
    """One message for all problems of a set. The first are printed in full, the rest are counted."""
    head = f"{len(problems)} of {examples} examples of the {role} set cannot be used"
    if longest > config.max_length:
        head += f" (the longest has {longest} tokens, max_length is {config.max_length})"
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([head, *lines])
