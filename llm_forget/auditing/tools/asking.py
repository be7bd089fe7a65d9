"""Ask the same question in another way: rebuild prompts, and encode them with words put into the model's mouth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llm_forget.data.encode import Encoded, EncodingConfig, encode
from llm_forget.data.examples import Example, Message

_NAME = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*\.?")


def question_of(example: Example) -> str | None:
    """The last user turn, or the raw prompt; None for plain text, which asks nothing."""
    if isinstance(example.prompt, str):
        return example.prompt or None
    return next((turn.content for turn in reversed(example.prompt) if turn.role == "user"), None)


def reworded(example: Example, change: Callable[[str], str]) -> Example:
    """The example with another last question. Plain text stays as it is."""
    question = question_of(example)
    if question is None:
        return example
    if isinstance(example.prompt, str):
        return replace(example, prompt=change(question))
    turns = list(example.prompt)
    place = max(index for index, turn in enumerate(turns) if turn.role == "user")
    turns[place] = Message("user", change(question))
    return replace(example, prompt=tuple(turns))


def after(example: Example, earlier: Sequence[Example]) -> Example:
    """The example after questions and answers of others. Raw prompts are put before a raw prompt; plain text stays as it is."""
    if isinstance(example.prompt, str):
        before = "".join(f"{question_of(one)}{one.answer}\n\n" for one in earlier if question_of(one))
        return replace(example, prompt=before + example.prompt) if example.prompt else example
    turns: list[Message] = []
    for one in earlier:
        turns += [Message("user", question_of(one) or ""), Message("assistant", one.answer)]
    own = list(example.prompt)
    start = 1 if own and own[0].role == "system" else 0
    return replace(example, prompt=(*own[:start], *turns, *own[start:]))


def under_system(example: Example, text: str) -> Example:
    """The example with another system turn. A raw prompt is left as it is."""
    if isinstance(example.prompt, str):
        return example
    own = [turn for turn in example.prompt if turn.role != "system"]
    return replace(example, prompt=(Message("system", text), *own))


def as_text(example: Example, layout: str) -> Example:
    """The example as raw text without a chat template: ``layout`` with ``{question}``. Plain text stays as it is."""
    question = question_of(example)
    return example if question is None else replace(example, prompt=layout.replace("{question}", question))


def subject_of(first: str, second: str) -> str | None:
    """The longest run of words with capital letters that two questions share, at least two words: the name of whom they ask.

    Args:
        first: a question.
        second: another question about the same subject.
    """
    runs = _name_runs(first) & _name_runs(second)
    return max(runs, key=lambda run: (len(run), run), default=None)


def _name_runs(text: str) -> set[str]:
    """All runs of two or more consecutive words that begin with a capital letter."""
    found: set[str] = set()
    words = [(one.group(), one.start(), one.end()) for one in _NAME.finditer(text)]
    for start in range(len(words)):
        if not words[start][0][0].isupper():
            continue
        for stop in range(start + 1, min(start + 6, len(words))):
            word, begin, end = words[stop]
            if not word[0].isupper() or text[words[stop - 1][2] : begin] != " ":
                break
            found.add(re.sub(r"['’]s$", "", text[words[start][1] : end]))
    return found


def encode_opened(
    tokenizer: Any, example: Example, config: EncodingConfig, opening: str = "", answer: str | None = None
) -> Encoded:
    """Encode an example whose answer begins with given words, which are not scored.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example.
        config: encoding settings.
        opening: the words before the answer; end them with a newline, so that the answer's tokens stay the same.
        answer: another answer; None for the example's own.
    """
    row = encode(tokenizer, example, config, answer)
    if not opening:
        return row
    own = tuple(tokenizer(opening, add_special_tokens=False, verbose=False)["input_ids"])
    start = row.prompt_length
    return replace(row, input_ids=row.input_ids[:start] + own + row.input_ids[start:], prompt_length=start + len(own))


def roomy(config: EncodingConfig, limit: int | None) -> EncodingConfig:
    """Encoding settings with room for an attack's prompt, up to the positions of the model; longer rows are truncated."""
    longest = 4 * config.max_length
    return replace(config, max_length=min(longest, limit or longest), truncate=True, chunk=False)


def companions(examples: Sequence[Example]) -> list[list[int]]:
    """For each example, the others about the same subject, the nearest first.

    Two examples have the same subject if their questions share a name (``subject_of``). If no two examples of the set share
    one, the neighbours in the order of the file take their place.
    """
    asked = [question_of(one) or "" for one in examples]
    runs = [_name_runs(text) for text in asked]
    found = []
    for row in range(len(examples)):
        others = [other for other in range(len(examples)) if other != row and runs[row] & runs[other]]
        found.append(sorted(others, key=lambda other: (abs(other - row), other)))
    if any(found):
        return found
    return [[other for other in (row - 1, row + 1) if 0 <= other < len(examples)] for row in range(len(examples))]
