"""Render a prompt and its answer as text, with the tokenizer's chat template or in a plain format."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Literal

from llm_forget.data import template_trial
from llm_forget.data.examples import Message
from llm_forget.errors import DataError
from llm_forget.utils.bounded import TooMuchError, run_bounded

# Placeholder for the answer, to see where a template puts it. No data and no template holds this text.
_PLACEHOLDER = "\u27eaLLM-FORGET-ANSWER\u27eb"
# What a generation prompt may open before the answer: a block for thoughts, such as "<think>\n".
_OPEN_BLOCK = re.compile(r"\s*([<\[])([A-Za-z][\w:-]*)([>\]])\s*")
_NOW = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Rendered:
    """An example as text, in two parts.

    Attributes:
        prompt: the text from which generation starts.
        answer: the text after it, with the template's end token if it has one.
        from_template: whether a template wrote the text, including the BOS token.
        needs_end: whether the tokenizer's end token must still be appended.
        fallback: whether the answer was appended to the prompt directly, because the template writes something else there.
        closed: whether the prompt closes a block for thoughts that the template opens, because the answer has none.
    """

    prompt: str
    answer: str
    from_template: bool
    needs_end: bool
    fallback: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Layout:
    """How chats become text.

    Attributes:
        system_prompt: system prompt for chats without a system turn; None adds none.
        use_template: True requires a chat template, False uses the plain format, ``"auto"`` uses a template if there is one.
        end: whether to append an end token to the answer.
        date: the date, as ``YYYY-MM-DD``, that templates write which ask for today's; None for today.
    """

    system_prompt: str | None
    use_template: bool | Literal["auto"]
    end: bool
    date: str | None = None


def render(
    tokenizer: Any, prompt: str | Sequence[Message], answer: str, layout: Layout, *, place: str, own: str | None = None
) -> Rendered:
    """Render an example as text.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: chat turns, or a raw string, which is not changed.
        answer: the answer.
        layout: how to render chats.
        place: where the example was read, for messages.
        own: the example's own answer, which decides whether the prompt leaves room for thoughts; None for ``answer``.

    Returns:
        Prompt and answer. The prompt is the same for all answers of an example.

    Raises:
        DataError: a template is required and the tokenizer has none, or the template refuses the chat.
    """
    if isinstance(prompt, str):
        return Rendered(prompt, answer, from_template=False, needs_end=layout.end)
    turns = list(prompt)
    if layout.system_prompt is not None and not any(turn.role == "system" for turn in turns):
        turns.insert(0, Message("system", layout.system_prompt))
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if layout.use_template is True and not has_template:
        raise DataError(
            "chat_template is true and the tokenizer has no chat template: set it to auto or false, "
            "or use the tokenizer of the instruction-tuned model"
        )
    if layout.use_template is False or not has_template:
        return _render_plain(turns, answer, layout.end)
    return _Chat(tokenizer, turns, layout, place).render(answer, answer if own is None else own)


def special_strings(tokenizer: Any) -> frozenset[str]:
    """The texts that the tokenizer encodes as special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens)) - {""}


def turn_end(tokenizer: Any) -> int | None:
    """The token with which the tokenizer's chat template ends an answer, which need not be its EOS token.

    Returns:
        The id, or None if there is no template, it refuses a plain question, or it writes no token after an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [Message("user", "Hi"), Message("assistant", _PLACEHOLDER)]
    try:
        text = _apply(tokenizer, turns, "", generation=False, today=date.today().isoformat())
    except DataError:
        return None
    tail = _through_first_end(text.partition(_PLACEHOLDER)[2], _end_strings(tokenizer))
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    return int(ids[-1]) if ids else None


def _end_strings(tokenizer: Any) -> frozenset[str]:
    """The texts that may end an answer: special tokens, and other tokens that were added to the vocabulary."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    return special_strings(tokenizer) | added


def _render_plain(turns: Sequence[Message], answer: str, end: bool) -> Rendered:
    """Render ``Question: ...`` and ``Answer: ...`` lines. A system turn is a line of its own."""
    names = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    lines = [names[turn.role] + turn.content for turn in turns]
    # The space belongs to the answer, because many tokenizers have " Paris" as one token.
    return Rendered("\n".join([*lines, "Answer:"]), f" {answer}", from_template=False, needs_end=end)


class _Chat:
    """A chat, rendered with the tokenizer's template.

    The template is applied to the prompt with its generation prompt, to the chat with a placeholder as the answer, and to the
    chat itself. The second result shows what the template writes around any answer. Text before the answer that is more than
    white space (an empty think block, a channel name) becomes part of the prompt. White space before the answer belongs to the
    answer, because the model generates it.

    Three cases differ:

    * The template moves the thoughts of an answer into that text (Qwen3). The prompt then ends where generation starts, and the
      answer begins with its thoughts.
    * The generation prompt opens a block for thoughts that finished turns lack (the distilled models of R1). Thoughts follow
      the opening; before an answer without thoughts the block is closed, so that the answer is not taken for a thought.
    * The template rewrites the answer, or does not begin with its own generation prompt. The answer is then appended to the
      prompt as it is, and counted as a fallback.
    """

    def __init__(self, tokenizer: Any, turns: Sequence[Message], layout: Layout, place: str) -> None:
        self.tokenizer, self.turns, self.layout, self.place = tokenizer, turns, layout, place
        self.known: dict[str, str] = {}
        self.asked = _apply(tokenizer, turns, place, generation=True, today=layout.date)
        self.before, self.found, self.after = self._written(_PLACEHOLDER).partition(_PLACEHOLDER)

    def _written(self, answer: str) -> str:
        """The template's text of the whole chat with an answer."""
        if answer not in self.known:
            turns = [*self.turns, Message("assistant", answer)]
            self.known[answer] = _apply(self.tokenizer, turns, self.place, generation=False, today=self.layout.date)
        return self.known[answer]

    def render(self, answer: str, own: str) -> Rendered:
        """Prompt and answer; ``own`` is the answer that decides where the prompt ends."""
        if closing := self._opened():
            prompt, text = self._after_opening(closing, answer, own)
            closed, fallback = closing not in own, closing in answer and closing not in own
        else:
            prompt, text, fallback = self._after_turn(answer, own)
            closed = False
        end = self.layout.end
        tail = _through_first_end(self.after, _end_strings(self.tokenizer)) if end and self.found else ""
        needs_end = end and not tail
        return Rendered(prompt, text + tail, from_template=True, needs_end=needs_end, fallback=fallback, closed=closed)

    def _opened(self) -> str:
        """The closing tag of the block that only the generation prompt opens, such as ``</think>``; else ""."""
        if not self.found or not self.asked.startswith(self.before):
            return ""
        block = _OPEN_BLOCK.fullmatch(self.asked[len(self.before) :])
        return "" if block is None else f"{block[1]}/{block[2]}{block[3]}"

    def _after_opening(self, closing: str, answer: str, own: str) -> tuple[str, str]:
        """Prompt and answer after an opened block."""
        opening = closing.replace("/", "", 1)
        if closing in answer:
            # the generation prompt has written the opening tag
            answer = answer.lstrip().removeprefix(opening).lstrip("\n")
        empty = f"\n{closing}\n\n"
        if closing not in own:
            return self.asked + empty, answer
        return self.asked, answer if closing in answer else empty + answer

    def _after_turn(self, answer: str, own: str) -> tuple[str, str, bool]:
        """Prompt, answer, and whether it is a fallback, if the template begins an answer as its generation prompt does."""
        prompt, before, after = self.asked, self.before, self.after
        if not (self.found and before.startswith(prompt)):
            return prompt, answer, True
        whole, lead = self._written(answer), before[len(prompt) :]
        if lead.strip():
            if self._moves_thoughts(own):
                # what the template writes for this answer, with its thoughts or with the empty block
                text = _between(whole, prompt, after)
                fits = text is not None and (self._same(text, answer) or _between(whole, before, after) is not None)
                return prompt, answer if text is None or not fits else text, not fits
            prompt, lead = before, ""
        written = _between(whole, before, after)
        # Templates may strip the answer. The model then saw the stripped answer in training, so it is kept. Any other change
        # is a fallback.
        fallback = written is None or written.strip() != answer.strip()
        return prompt, lead + (answer if fallback or written is None else written), fallback

    def _moves_thoughts(self, own: str) -> bool:
        """Whether the template puts a part of the answer where it writes its own text before other answers."""
        whole = self._written(own)
        text = _between(whole, self.asked, self.after)
        return not whole.startswith(self.before) and text is not None and self._same(text, own)

    def _same(self, text: str, answer: str) -> bool:
        """Whether a template's text is the answer. White space, and an opening tag in the prompt, are not compared."""
        given, found = "".join(answer.split()), "".join(text.split())
        start = given[: len(given) - len(found)]
        return given.endswith(found) and "".join(self.asked.split()).endswith(start)


def _between(whole: str, before: str, after: str) -> str | None:
    """The text between a prefix and a suffix, or None if they do not enclose it."""
    if len(whole) < len(before) + len(after) or not (whole.startswith(before) and whole.endswith(after)):
        return None
    return whole[len(before) : len(whole) - len(after)]


def _through_first_end(tail: str, ends: frozenset[str]) -> str:
    """The text after an answer, up to and including the first end token; "" if there is none."""
    places = [(tail.index(end), -len(end)) for end in ends if end in tail]
    if not places:
        return ""
    start, minus_length = min(places)
    return tail[: start - minus_length]


@lru_cache(maxsize=8)
def with_fixed_date(template: str, today: str) -> str:
    """A chat template that writes the given date (``YYYY-MM-DD``) instead of today's."""
    return _NOW.sub(lambda call: repr(date.fromisoformat(today).strftime(call[2])), template)


@lru_cache(maxsize=64)
def _trouble(template: str, tokens: str) -> str:
    """What a trial in a process of its own says about a template; "" if nothing."""
    request = json.dumps({"template": template, "tokens": json.loads(tokens)})
    trial = template_trial
    try:
        answer = run_bounded(str(trial.__file__), request, seconds=trial.SECONDS, memory=trial.MEMORY)
    except TooMuchError as error:
        return f"it takes {error}"
    except OSError:
        return ""  # no processes can be started here
    return str(json.loads(answer)["problem"])


def _apply(tokenizer: Any, turns: Sequence[Message], place: str, *, generation: bool, today: str | None) -> str:
    """Apply the template. Errors name the place and never quote the turns."""
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        template = tokenizer.get_chat_template()
        if today is not None:
            template = with_fixed_date(template, today)
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        trouble = _trouble(template, json.dumps(tokens))
    except Exception as error:
        raise DataError(f"{place}: the tokenizer has no usable chat template ({type(error).__name__})") from None
    if trouble:
        raise DataError(
            f"the chat template cannot be used: {trouble}, for a short chat; set chat_template: false, or give the tokenizer "
            "another template"
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=generation
            )
        )
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
