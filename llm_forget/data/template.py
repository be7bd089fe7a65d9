"""Render a prompt and its answer as text, with the tokenizer's chat template or in a plain format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.data.examples import Message
from llm_forget.errors import DataError

# Placeholder for the answer, to see where a template puts it. No data and no template holds this text.
_PLACEHOLDER = "\u27eaLLM-FORGET-ANSWER\u27eb"


@dataclass(frozen=True)
class Rendered:
    """An example as text, in two parts.

    Attributes:
        prompt: the text from which generation starts.
        answer: the text after it, with the template's end token if it has one.
        from_template: whether a template wrote the text, including the BOS token.
        needs_end: whether the tokenizer's end token must still be appended.
        fallback: whether the answer was appended to the prompt directly, because the template writes something else there.
    """

    prompt: str
    answer: str
    from_template: bool
    needs_end: bool
    fallback: bool = False


def render(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    answer: str,
    *,
    place: str,
    system_prompt: str | None,
    use_template: bool | Literal["auto"],
    end: bool,
) -> Rendered:
    """Render an example as text.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: chat turns, or a raw string, which is not changed.
        answer: the answer.
        place: where the example was read, for messages.
        system_prompt: system prompt for chats without a system turn; None adds none.
        use_template: True requires a chat template, False uses the plain format, ``"auto"`` uses a template if there is one.
        end: whether to append an end token to the answer.

    Returns:
        Prompt and answer. The prompt does not depend on the answer.

    Raises:
        DataError: a template is required and the tokenizer has none, or the template refuses the chat.
    """
    if isinstance(prompt, str):
        return Rendered(prompt, answer, from_template=False, needs_end=end)
    turns = list(prompt)
    if system_prompt is not None and not any(turn.role == "system" for turn in turns):
        turns.insert(0, Message("system", system_prompt))
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if use_template is True and not has_template:
        raise DataError(
            "chat_template is true and the tokenizer has no chat template: set it to auto or false, "
            "or use the tokenizer of the instruction-tuned model"
        )
    if use_template is False or not has_template:
        return _render_plain(turns, answer, end)
    return _render_chat(tokenizer, turns, answer, end, place)


def special_strings(tokenizer: Any) -> frozenset[str]:
    """The texts that the tokenizer encodes as special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens)) - {""}


def _render_plain(turns: Sequence[Message], answer: str, end: bool) -> Rendered:
    """Render ``Question: ...`` and ``Answer: ...`` lines. A system turn is a line of its own."""
    names = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    lines = [names[turn.role] + turn.content for turn in turns]
    # The space belongs to the answer, because many tokenizers have " Paris" as one token.
    return Rendered("\n".join([*lines, "Answer:"]), f" {answer}", from_template=False, needs_end=end)


def _render_chat(tokenizer: Any, turns: Sequence[Message], answer: str, end: bool, place: str) -> Rendered:
    """Render a chat with the tokenizer's template.

    The template is applied three times: to the prompt with its generation prompt, to the chat with a placeholder as the
    answer, and to the chat itself. The second result shows what the template writes around any answer. Text before the answer
    that is more than white space (an empty think block, a channel name) is the same for every answer and becomes part of the
    prompt. White space before the answer belongs to the answer, because the model generates it.

    Two cases are corrected here and reported as a fallback: the chat does not begin with the template's own generation prompt
    (for example if that opens a think block), and the template rewrites the answer.
    """
    prompt = _apply(tokenizer, turns, place, generation=True)
    frame = _apply(tokenizer, [*turns, Message("assistant", _PLACEHOLDER)], place, generation=False)
    whole = _apply(tokenizer, [*turns, Message("assistant", answer)], place, generation=False)

    before, found, after = frame.partition(_PLACEHOLDER)
    fits = bool(found) and before.startswith(prompt)
    lead = before[len(prompt) :] if fits else ""
    if lead.strip():
        prompt, lead = before, ""

    written = _between(whole, before, after) if fits else None
    # Templates may strip the answer. The model then saw the stripped answer in training, so it is kept. Any other change is
    # a fallback.
    fallback = written is None or written.strip() != answer.strip()
    text = lead + (answer if fallback or written is None else written)
    tail = _through_first_end(after, special_strings(tokenizer)) if end and found else ""
    return Rendered(prompt, text + tail, from_template=True, needs_end=end and not tail, fallback=fallback)


def _between(whole: str, before: str, after: str) -> str | None:
    """The text between a prefix and a suffix, or None if they do not enclose it."""
    if len(whole) < len(before) + len(after) or not (whole.startswith(before) and whole.endswith(after)):
        return None
    return whole[len(before) : len(whole) - len(after)]


def _through_first_end(tail: str, specials: frozenset[str]) -> str:
    """The text after an answer, up to and including the first special token; "" if there is none."""
    ends = [(tail.index(special), -len(special)) for special in specials if special in tail]
    if not ends:
        return ""
    start, minus_length = min(ends)
    return tail[: start - minus_length]


def _apply(tokenizer: Any, turns: Sequence[Message], place: str, *, generation: bool) -> str:
    """Apply the template. Errors name the place and never quote the turns."""
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))
    except Exception as error:
        # Messages that templates raise themselves are helpful. Others may quote the chat, so only literal ones are shown.
        said = str(error)
        literal = said and said in str(tokenizer.chat_template)
        reason = f"{type(error).__name__}: {said}" if literal else type(error).__name__
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"{place}: the chat template refuses the turns {roles} ({reason}); give turns that it allows, leave "
            "system_prompt out if it knows no system turn, or set chat_template: false"
        ) from None
