"""Test the boundaries of the answer for common chat templates and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from profiles import examples
from pydantic import TypeAdapter

from llm_forget.data.encode import Encoded, EncodingConfig, encode, encode_all, encode_prompt
from llm_forget.data.examples import DataSource, Example, Message, example_id, read_examples
from llm_forget.errors import DataError
from llm_forget.testing import CHATML, tiny_tokenizer

CONFIG = EncodingConfig()
PLAIN = EncodingConfig(chat_template=False)
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>"

_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Adds an empty think block before the last answer; the generation prompt has none.
THINK_BLOCK = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + _OPEN
)
# Opens a think block in the generation prompt; the answer has none.
OPENS_THINKING = _TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
TRIMS = _TURNS.replace("m['content']", "m['content'] | trim") + _OPEN
UPPERS = _TURNS.replace("m['content']", "m['content'] | upper") + _OPEN
# Has no generation prompt, and a space on both sides of the answer.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
# Ends the turn, then the text.
TWO_ENDS = _TURNS.replace("<|im_end|>\n", "<|im_end|>\n<|begin|>") + _OPEN
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + _OPEN.replace(
    "<|im_start|>assistant\n", "assistant: "
)
TEMPLATES = {
    "chatml": CHATML,
    "think block": THINK_BLOCK,
    "opens thinking": OPENS_THINKING,
    "trims": TRIMS,
    "uppers": UPPERS,
    "inst": INST,
    "two ends": TWO_ENDS,
    "no end": NO_END,
    "none": None,
}
TOKENIZERS = {
    (name, bos): tiny_tokenizer(bos=bos, chat_template=template)
    for name, template in TEMPLATES.items()
    for bos in (False, True)
}


def example(prompt: str | Sequence[Message], answer: str, source: str = "") -> Example:
    turns = prompt if isinstance(prompt, str) else tuple(prompt)
    return Example(example_id(turns, answer), turns, answer, source=source)


def chat(question: str, answer: str, source: str = "") -> Example:
    return example([Message("user", question)], answer, source)


def parts(tokenizer: Any, encoded: Encoded) -> tuple[str, str]:
    """Return prompt and answer as text."""
    ids, length = list(encoded.input_ids), encoded.prompt_length
    return tokenizer.decode(ids[:length]), tokenizer.decode(ids[length:])


def test_chat_ends_with_the_end_token_and_drops_the_newline_after_it() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    encoded = encode(tokenizer, chat("the question?", "the answer"), CONFIG)
    assert parts(tokenizer, encoded) == (f"<|im_start|>user\nthe question?{END}\n{ASSISTANT}", f"the answer{END}")
    assert encoded.input_ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        ("think block", f"<|im_start|>user\nQ{END}\n{ASSISTANT}<think>\n\n</think>\n\n", f" A {END}"),
        ("opens thinking", f"<|im_start|>user\nQ{END}\n{ASSISTANT}<think>\n\n</think>\n\n", f" A {END}"),
        ("trims", f"<|im_start|>user\nQ{END}\n{ASSISTANT}", f"A{END}"),
        ("inst", "[INST] Q [/INST]", f"  A  {END}"),
        ("two ends", f"<|im_start|>user\nQ{END}\n<|begin|>{ASSISTANT}", f" A {END}"),
        ("no end", "user: Q\nassistant: ", f" A {END}"),
        ("none", "Question: Q\nAnswer:", f"  A {END}"),
    ],
)
def test_boundary_of_each_kind_of_template(template: str, prompt: str, answer: str, bos: bool) -> None:
    tokenizer = TOKENIZERS[template, bos]
    begin = tokenizer.bos_token if bos and template == "none" else ""  # templates add their own
    assert parts(tokenizer, encode(tokenizer, chat("Q", " A "), CONFIG)) == (begin + prompt, answer)


def test_rewritten_answer_is_put_back_and_counted() -> None:
    tokenizer = TOKENIZERS["uppers", False]
    rows, report = encode_all(tokenizer, [chat("Q", "answer"), chat("Q", "SAME")], CONFIG)
    assert [parts(tokenizer, row)[1] for row in rows] == [f"answer{END}", f"SAME{END}"]
    assert report.template_fallbacks == 1


def test_a_prompt_that_finished_turns_do_not_begin_with_is_counted() -> None:
    opens_a_list = _TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n* ' }}{% endif %}"
    report = encode_all(tiny_tokenizer(chat_template=opens_a_list), [chat("Q", "A")], CONFIG)[1]
    assert report.template_fallbacks == 1
    assert "1 of 1 examples of the forget set have an answer that the chat template changes" in report.warnings[0]
    assert encode_all(TOKENIZERS["think block", False], [chat("Q", "A")], CONFIG)[1].template_fallbacks == 0


def test_system_prompt_is_added_once() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    config = EncodingConfig(system_prompt="be brief")
    assert parts(tokenizer, encode(tokenizer, chat("Q", "A"), config))[0].startswith(
        f"<|im_start|>system\nbe brief{END}\n<|im_start|>user"
    )
    own = example([Message("system", "own"), Message("user", "Q")], "A")
    assert encode(tokenizer, own, config) == encode(tokenizer, own, CONFIG)
    plain = parts(tokenizer, encode(tokenizer, chat("Q", "A"), EncodingConfig(system_prompt="be", chat_template=False)))
    assert plain == ("be\nQuestion: Q\nAnswer:", f" A{END}")


def test_earlier_turns_without_a_template() -> None:
    turns = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    tokenizer = TOKENIZERS["none", False]
    assert parts(tokenizer, encode(tokenizer, example(turns, "four"), CONFIG)) == (
        "Question: one\nAnswer: two\nQuestion: three\nAnswer:",
        f" four{END}",
    )


def test_template_switch() -> None:
    with_template, without = TOKENIZERS["chatml", False], TOKENIZERS["none", False]
    assert encode(with_template, chat("Q", "A"), PLAIN) == encode(without, chat("Q", "A"), CONFIG)
    with pytest.raises(DataError, match="no chat template"):
        encode(without, chat("Q", "A"), EncodingConfig(chat_template=True))


def test_token_across_the_boundary_is_split_and_counted() -> None:
    tokenizer = TOKENIZERS["none", False]
    assert tokenizer("the")["input_ids"] == [tokenizer.convert_tokens_to_ids("the")]
    joined = example("t", "he")
    rows, report = encode_all(tokenizer, [joined, example("a ", "b")], CONFIG)
    assert report.split_boundaries == 2  # "the" and "Ġb" are tokens of this tokenizer
    assert [parts(tokenizer, row) for row in rows] == [("t", f"he{END}"), ("a ", f"b{END}")]
    assert rows[0].input_ids[: rows[0].prompt_length] == tuple(tokenizer("t")["input_ids"])
    assert encode_all(tokenizer, [example("a", " b")], CONFIG)[1].split_boundaries == 0


@pytest.mark.parametrize(("bos", "prompt", "answer"), [(True, "<|begin|>", "Some text"), (False, "S", "ome text")])
def test_plain_text_scores_all_but_the_first_token(bos: bool, prompt: str, answer: str) -> None:
    tokenizer = TOKENIZERS["chatml", bos]
    document = example("", "Some text")
    with_end, without = (
        encode(tokenizer, document, CONFIG),
        encode(tokenizer, document, EncodingConfig(add_end_token=False)),
    )
    assert with_end.prompt_length == without.prompt_length == 1
    assert parts(tokenizer, with_end) == (prompt, answer + END)
    assert parts(tokenizer, without) == (prompt, answer)


def test_chats_have_no_end_token_either_if_it_is_disabled() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    assert parts(tokenizer, encode(tokenizer, chat("Q", "A"), EncodingConfig(add_end_token=False)))[1] == "A"


def test_end_token_added_by_the_tokenizer_is_not_doubled() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer(bos=True, chat_template=None)
    begin, end = (tokenizer.bos_token, tokenizer.bos_token_id), (END, tokenizer.eos_token_id)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {END}", special_tokens=[begin, end]
    )
    ids = encode(tokenizer, example("a", "b"), CONFIG).input_ids
    assert ids == (begin[1], *tokenizer("ab", add_special_tokens=False)["input_ids"], end[1])


def test_other_answers_share_the_prompt() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    one = chat("Q", "A")
    other = encode(tokenizer, one, CONFIG, answer="something else")
    assert parts(tokenizer, other) == (parts(tokenizer, encode(tokenizer, one, CONFIG))[0], f"something else{END}")
    assert other.id == one.id
    rows, _ = encode_all(tokenizer, [one, one], CONFIG, answers=["something else", None])
    assert rows == [other, encode(tokenizer, one, CONFIG)]
    with pytest.raises(DataError, match="1 answers were given for 2"):
        encode_all(tokenizer, [one, one], CONFIG, answers=["x"])


text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
some_tokenizer = st.sampled_from(sorted(TOKENIZERS))


@settings(max_examples=examples(300), deadline=None)
@given(some_tokenizer, text | st.lists(text, min_size=1, max_size=3), text, text, st.sampled_from([CONFIG, PLAIN]))
def test_generation_prompt_equals_the_scored_prompt(
    name: tuple[str, bool], prompt: str | list[str], answer: str, other: str, config: EncodingConfig
) -> None:
    tokenizer = TOKENIZERS[name]
    turns = prompt if isinstance(prompt, str) else [Message("user", part) for part in prompt]
    one = example(turns, answer)
    encoded = encode(tokenizer, one, config)
    start = encode_prompt(tokenizer, one, config)
    assert encoded.input_ids[: encoded.prompt_length] == start
    assert encode(tokenizer, one, config, answer=other).input_ids[: len(start)] == start
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    written = parts(tokenizer, encoded)[1]
    assert written.endswith(END)
    assert written.removesuffix(END).strip() == answer.strip()


@settings(max_examples=examples(100), deadline=None)
@given(text)
def test_plain_text_round_trips(document: str) -> None:
    tokenizer = TOKENIZERS["none", True]
    assert tokenizer.decode(list(encode(tokenizer, example("", document), CONFIG).input_ids[1:-1])) == document


def test_too_long_examples_are_refused_with_count_length_and_remedy() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    examples = [chat("Q", "x" * length, f"f.jsonl:{length}") for length in (1, 50, 90)]
    whole = len(encode(tokenizer, examples[2], CONFIG).input_ids)
    with pytest.raises(DataError) as caught:
        encode_all(tokenizer, examples, EncodingConfig(max_length=60), role="retain")
    message = str(caught.value)
    assert "2 of 3 examples of the retain set" in message
    assert f"the longest has {whole} tokens, max_length is 60" in message
    assert "f.jsonl:50" in message
    assert "f.jsonl:90" in message
    assert "truncate: true" in message
    assert "xxx" not in message


def test_truncation_removes_the_end_and_is_counted() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    examples = [chat("Q", "x"), chat("Q", "x" * 90)]
    rows, report = encode_all(tokenizer, examples, EncodingConfig(max_length=60, truncate=True))
    whole = encode(tokenizer, examples[1], CONFIG)
    assert rows[1] == Encoded(whole.id, whole.input_ids[:60], whole.prompt_length)
    assert (report.examples, report.truncated, report.longest) == (2, 1, len(whole.input_ids))
    assert report.tokens == sum(len(row.input_ids) for row in rows)
    assert report.answer_tokens == 2 + 60 - whole.prompt_length
    cut = len(whole.input_ids) - 60
    assert (report.cut_tokens, report.counts()["truncated"]) == (cut, 1)
    said = f"1 of 2 examples of the forget set were truncated at max_length 60: {cut} of {report.tokens + cut} tokens"
    assert report.warnings[0].startswith(said)


def test_truncation_of_the_whole_answer_is_refused() -> None:
    tokenizer = TOKENIZERS["chatml", False]
    one = chat("long " * 20, "A", "f.jsonl:3")
    length = len(encode_prompt(tokenizer, one, CONFIG))
    for limit in (5, length):
        with pytest.raises(DataError, match=rf"f\.jsonl:3: the prompt alone has {length} tokens"):
            encode(tokenizer, one, EncodingConfig(max_length=limit, truncate=True))
    kept = encode(tokenizer, one, EncodingConfig(max_length=length + 1, truncate=True))
    assert len(kept.input_ids) == kept.prompt_length + 1


def test_only_the_first_ten_problems_are_listed_in_full() -> None:
    with pytest.raises(DataError) as caught:
        encode_all(TOKENIZERS["chatml", False], [chat("Q", "A")] * 14, EncodingConfig(max_length=5))
    assert "14 of 14" in str(caught.value)
    assert "and 4 more" in str(caught.value)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(DataError, match="the retain set is empty"):
        encode_all(TOKENIZERS["chatml", False], [], CONFIG, role="retain")
    with pytest.raises(DataError, match=r"f:1: the answer is empty"):
        encode(TOKENIZERS["chatml", False], chat("Q", "A", "f:1"), CONFIG, answer=" \n")
    with pytest.raises(DataError, match=r"f:1: the tokenizer leaves no answer token"):
        encode(TOKENIZERS["none", False], example("", "x", "f:1"), CONFIG)


def test_missing_end_token_is_refused_unless_disabled() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="add_end_token: false"):
        encode(tokenizer, chat("Q", "A"), CONFIG)
    encode(tokenizer, chat("Q", "A"), EncodingConfig(add_end_token=False))


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("{{ raise_exception('no system turn is known') }}", "no system turn is known"),
        ("{{ raise_exception('bad: ' + messages[0]['content']) }}", "TemplateError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
    ],
)
def test_template_errors_name_the_place_and_not_the_text(fault: str, shown: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=fault)
    with pytest.raises(DataError) as caught:
        encode_all(tokenizer, [chat("private", "private", "f.jsonl:4")], CONFIG)
    assert "f.jsonl:4: the chat template refuses the turns user" in str(caught.value)
    assert shown in str(caught.value)
    assert "private" not in str(caught.value)


def test_special_tokens_in_the_text_are_warned_about() -> None:
    examples = [chat("Q", "A"), chat("Q", f"A{END}B")]
    warnings = encode_all(TOKENIZERS["chatml", False], examples, CONFIG, role="forget")[1].warnings
    assert [warning.partition(" hold")[0] for warning in warnings] == ["1 of 2 examples of the forget set"]
    assert encode_all(TOKENIZERS["chatml", False], examples[:1], CONFIG)[1].warnings == ()


def test_templates_that_write_todays_date_get_a_fixed_one() -> None:
    dated = '{% if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% endif %}' + CHATML
    tokenizer = tiny_tokenizer(chat_template=dated)
    rows, report = encode_all(tokenizer, [chat("Q", "A")], EncodingConfig(date="2025-02-01"))
    assert tokenizer.decode(rows[0].input_ids).startswith("01 Feb 2025<|im_start|>user")
    assert report.warnings == ()
    warnings = encode_all(tokenizer, [chat("Q", "A")], EncodingConfig(date=None))[1].warnings
    assert len(warnings) == 1
    assert "set encoding.date" in warnings[0]
    with pytest.raises(DataError, match="YYYY-MM-DD"):
        EncodingConfig(date="1.2.2025")


def test_config_from_a_recipe_is_checked_too() -> None:
    adapter = TypeAdapter(EncodingConfig)
    assert adapter.validate_python({"chat_template": "auto"}) == CONFIG
    assert adapter.validate_python({"chat_template": False, "max_length": 9}) == EncodingConfig(9, chat_template=False)
    for wrong in ({"max_length": 1}, {"chat_template": "always"}):
        with pytest.raises(ValueError, match=r"max_length|chat_template"):
            adapter.validate_python(wrong)


def test_no_text_and_no_ids_in_a_repr() -> None:
    one = chat("private question", "private answer")
    encoded = encode(TOKENIZERS["chatml", False], one, CONFIG)
    assert repr(encoded) == f"Encoded(id='{one.id}', prompt_length={encoded.prompt_length})"
    assert "private" not in repr(one)


def test_tiny_tokenizer_is_small_and_the_same_every_time() -> None:
    tokenizer, again = tiny_tokenizer(), tiny_tokenizer()
    assert len(tokenizer) <= 400
    assert tokenizer.get_vocab() == again.get_vocab()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id != 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs a local copy of TOFU")
@pytest.mark.skipif("LLM_FORGET_TEST_TOKENIZER" not in os.environ, reason="set LLM_FORGET_TEST_TOKENIZER to a folder")
def test_a_real_tokenizer_on_real_data() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.environ["LLM_FORGET_TEST_TOKENIZER"])
    examples = read_examples(DataSource(str(SHARED / "data" / "tofu" / "full.jsonl"), limit=400))
    for config in (CONFIG, PLAIN):
        rows, report = encode_all(tokenizer, examples, config)
        assert (report.split_boundaries, report.template_fallbacks, report.warnings) == (0, 0, ())
        for row, one in zip(rows, examples, strict=True):
            assert parts(tokenizer, row)[1].strip() == one.answer.strip() + tokenizer.eos_token
            assert encode_prompt(tokenizer, one, config) == row.input_ids[: row.prompt_length]
