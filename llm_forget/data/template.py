"""Text of a prompt and of what follows it: by the tokenizer's chat template, or in plain words where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.data.examples import Message
from llm_forget.errors import DataError

# Stands for the answer while a template shows where it would put one; no data and no template holds it.
_PLACEHOLDER = "\u27eaLLM-FORGET-ANSWER\u27eb"


@dataclass(frozen=True)
class Rendered:
    """An example as text, in two parts.

    Attributes:
        prompt: what generation starts from.
        answer: what follows, with the template's end token where it has one.
        from_template: whether a template wrote it, BOS token included.
        needs_end: whether the tokenizer's end token is still to be put behind it.
        fallback: whether the answer was put behind the prompt by hand, since the template writes something else there.
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
    """Write an example as text.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: chat turns, or a raw string, which is used as it is.
        answer: the answer.
        place: where the example was read, for messages.
        system_prompt: a system turn for chats that have none; None for none.
        use_template: ``"auto"`` for the tokenizer's template where it has one.
        end: whether an end token closes the answer.

    Returns:
        Prompt and answer. The prompt does not depend on the answer.

    Raises:
        DataError: when there is no template and one is asked for, or the template refuses the chat.
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
    """The texts that a tokenizer reads as special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens)) - {""}


def _render_plain(turns: Sequence[Message], answer: str, end: bool) -> Rendered:
    """``Question: ...`` and ``Answer: ...`` lines, a system turn as a line of its own before them."""
    names = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    lines = [names[turn.role] + turn.content for turn in turns]
    # The space goes with the answer, as tokenizers of this kind want it: " Paris" is a token, " " then "Paris" is not.
    return Rendered("\n".join([*lines, "Answer:"]), f" {answer}", from_template=False, needs_end=end)


def _render_chat(tokenizer: Any, turns: Sequence[Message], answer: str, end: bool, place: str) -> Rendered:
    """A chat by the tokenizer's template.

    The template is asked three times: for the prompt with its generation prompt, for the chat with a placeholder as
    answer, and for the chat itself. The second shows what it writes around any answer: what comes before it that is
    more than white space (an empty think block, a channel name) is the same for every answer and becomes part of the
    prompt; white space before it belongs to the answer, because that is what the model generates.

    Two things a template may do are put right by hand, and reported as a fallback: a chat that does not begin with its
    own generation prompt (one that opens a think block, say), and an answer that it rewrites.
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
    # Templates may strip the answer, and then the stripped one is what the model saw in training; no more than that.
    fallback = written is None or written.strip() != answer.strip()
    text = lead + (answer if fallback or written is None else written)
    tail = _through_first_end(after, special_strings(tokenizer)) if end and found else ""
    return Rendered(prompt, text + tail, from_template=True, needs_end=end and not tail, fallback=fallback)


def _between(whole: str, before: str, after: str) -> str | None:
    """What stands between two texts, or None where they do not enclose it."""
    if len(whole) < len(before) + len(after) or not (whole.startswith(before) and whole.endswith(after)):
        return None
    return whole[len(before) : len(whole) - len(after)]


def _through_first_end(tail: str, specials: frozenset[str]) -> str:
    """What a template writes after an answer, up to and including the first special token; "" where there is none."""
    ends = [(tail.index(special), -len(special)) for special in specials if special in tail]
    if not ends:
        return ""
    start, minus_length = min(ends)
    return tail[: start - minus_length]


def _apply(tokenizer: Any, turns: Sequence[Message], place: str, *, generation: bool) -> str:
    """The template's text for some turns; its errors name the place and never quote the turns."""
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))
    except Exception as error:
        # Templates raise their own messages, which help; others may quote the chat, so only literal ones are shown.
        said = str(error)
        literal = said and said in str(tokenizer.chat_template)
        reason = f"{type(error).__name__}: {said}" if literal else type(error).__name__
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"{place}: the chat template refuses the turns {roles} ({reason}); give turns that it allows, leave "
            "system_prompt out if it knows no system turn, or set chat_template: false"
        ) from None
