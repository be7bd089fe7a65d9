"""Test that answers with and without thoughts stand where templates of reasoning models put them."""

from __future__ import annotations

from typing import Any

import pytest

from llm_forget.data.encode import Encoded, EncodingConfig, encode, encode_all, encode_prompt
from llm_forget.data.examples import Example, Message
from llm_forget.data.template import turn_end
from llm_forget.testing import CHATML, tiny_tokenizer

CONFIG = EncodingConfig()
_TURN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_SPLIT = (
    "{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = '' %}{% if '</think>' in m['content'] %}"
    "{% set thought = m['content'].split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% endif %}"
)
# Writes every answer's think block itself, an empty one if the answer has no thoughts (Qwen3).
MOVES = (
    _TURN + _SPLIT + "{{ '<think>\n' + thought + '\n</think>\n\n' + said + '<|im_end|>\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}" + _ASK
)
# The same, and the generation prompt opens the block (Qwen3 Thinking).
MOVES_OPENED = MOVES.replace(_ASK, _ASK.replace("assistant\n", "assistant\n<think>\n"))
# Opens a block in the generation prompt and drops it from finished turns (R1's distilled models).
OPENS = (
    _TURN + "{{ m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
BRACKETS = OPENS.replace("</think>", "[/THINK]").replace("<think>", "[THINK]")
# Drops thoughts and opens nothing.
DROPS = OPENS.replace("<think>\n' }}{% endif", "' }}{% endif")

START = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
THOUGHTS = "<think>\nT\n</think>\n\n"
END = "<|im_end|>"


def example(answer: str) -> Example:
    return Example("0", (Message("user", "Q"),), answer)


def parts(tokenizer: Any, row: Encoded) -> tuple[str, str]:
    ids = list(row.input_ids)
    return tokenizer.decode(ids[: row.prompt_length]), tokenizer.decode(ids[row.prompt_length :])


@pytest.mark.parametrize(
    ("template", "own", "prompt", "answer"),
    [
        (MOVES, "A", START + EMPTY, "A"),
        (MOVES, THOUGHTS + "A", START, THOUGHTS + "A"),
        (MOVES, "<think>T</think>A", START, THOUGHTS + "A"),
        (MOVES_OPENED, "A", START + EMPTY, "A"),
        (MOVES_OPENED, THOUGHTS + "A", START + "<think>\n", "T\n</think>\n\nA"),
        (OPENS, "A", START + EMPTY, "A"),
        (OPENS, THOUGHTS + "A", START + "<think>\n", "T\n</think>\n\nA"),
        (OPENS, "T\n</think>\n\nA", START + "<think>\n", "T\n</think>\n\nA"),
        (BRACKETS, "A", START + "[THINK]\n\n[/THINK]\n\n", "A"),
        (CHATML, THOUGHTS + "A", START, THOUGHTS + "A"),
    ],
)
def test_thoughts_stand_where_the_template_puts_them(template: str, own: str, prompt: str, answer: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    rows, report = encode_all(tokenizer, [example(own)], CONFIG)
    assert parts(tokenizer, rows[0]) == (prompt, answer + END)
    assert report.template_fallbacks == 0
    closed = template in (OPENS, BRACKETS) and own == "A"
    assert report.closed_blocks == int(closed)
    assert any("opens a block for thoughts" in one for one in report.warnings) == closed


@pytest.mark.parametrize("template", [MOVES, MOVES_OPENED, OPENS])
@pytest.mark.parametrize("own", ["A", THOUGHTS + "A"])
def test_every_answer_of_an_example_has_its_prompt(template: str, own: str) -> None:
    """An answer without thoughts has an empty block, in the prompt or in the answer, but not two."""
    tokenizer = tiny_tokenizer(chat_template=template)
    one = example(own)
    prompt = tokenizer.decode(encode_prompt(tokenizer, one, CONFIG))
    other = parts(tokenizer, encode(tokenizer, one, CONFIG, answer="B"))
    assert other[0] == prompt == parts(tokenizer, encode(tokenizer, one, CONFIG))[0]
    assert "".join(other) == START + EMPTY + "B" + END


def test_thoughts_that_a_template_drops_are_kept_and_told() -> None:
    tokenizer = tiny_tokenizer(chat_template=DROPS)
    rows, report = encode_all(tokenizer, [example(THOUGHTS + "A")], CONFIG)
    assert parts(tokenizer, rows[0]) == (START, THOUGHTS + "A" + END)
    assert report.template_fallbacks == 1
    assert "the chat template changes or writes elsewhere" in report.warnings[0]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, END),
        (CHATML.replace("<|im_end|>\n", " <|begin|>"), "<|begin|>"),
        (CHATML.replace("<|im_end|>", "<turn>"), "<turn>"),  # added to the vocabulary, and not special
        (CHATML.replace("<|im_end|>", "###"), None),
        ("{{ raise_exception('no') }}", None),
        (None, None),
    ],
)
def test_the_token_that_ends_a_turn(template: str | None, end: str | None) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens(["<turn>"])
    assert turn_end(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    if end is not None:
        assert encode(tokenizer, example("A"), CONFIG).input_ids[-1] == turn_end(tokenizer)
