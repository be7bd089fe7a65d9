"""Test that long examples are cut into rows that use every token once."""

from __future__ import annotations

import numpy as np
import pytest

from llm_forget.data.encode import EncodingConfig, encode, encode_all
from llm_forget.data.examples import Example, Message
from llm_forget.errors import DataError
from llm_forget.evaluation.tokens import TokenScores
from llm_forget.testing import tiny_tokenizer

LONG = " ".join(f"Page {number} of the book." for number in range(40))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("limit", [2, 7, 64, 10_000])
def test_every_token_of_a_document_is_scored_once(bos: bool, end: bool, limit: int) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    document = Example("doc", "", LONG, source="f:1")
    whole = encode(tokenizer, document, EncodingConfig(max_length=10_000, add_end_token=end))
    rows, report = encode_all(
        tokenizer, [document, document], EncodingConfig(max_length=limit, chunk=True, add_end_token=end)
    )
    own = [row for row, owner in zip(rows, report.owners, strict=True) if owner == 0]
    assert [token for row in own for token in row.input_ids[row.prompt_length :]] == list(whole.input_ids[1:])
    assert all(len(row.input_ids) == limit for row in own[:-1])
    assert [row.part for row in own] == (list(range(1, len(own) + 1)) if len(own) > 1 else [0])
    assert {(row.id, row.place) for row in rows} == {("doc", "f:1")}
    assert all(row.input_ids[0] == tokenizer.bos_token_id for row in rows) == bos
    assert (report.examples, report.rows, report.chunked) == (2, 2 * len(own), 2 * (len(own) > 1))
    assert (report.truncated, report.cut_tokens) == (0, 0)
    assert any(f"cut into parts, {report.rows} rows" in one for one in report.warnings) == (len(own) > 1)


def test_the_answer_of_a_long_chat_goes_on_in_the_next_row() -> None:
    tokenizer = tiny_tokenizer()
    chat = Example("chat", (Message("user", "Q"),), LONG)
    whole = encode(tokenizer, chat, EncodingConfig(max_length=10_000))
    rows, _ = encode_all(tokenizer, [chat], EncodingConfig(max_length=50, chunk=True))
    assert rows[0].prompt_length == whole.prompt_length
    assert sum(row.answer_length for row in rows) == whole.answer_length
    with pytest.raises(DataError, match="set one of the two"):
        EncodingConfig(chunk=True, truncate=True)
    with pytest.raises(DataError, match="the prompt alone has"):
        encode_all(tokenizer, [chat], EncodingConfig(max_length=whole.prompt_length, chunk=True))


def test_the_parts_of_an_example_become_one_row_of_scores() -> None:
    values = np.arange(9.0)
    scores = TokenScores(values, values > 4, values, values, np.array([0, 2, 4, 5, 9]))
    assert scores.grouped([0, 0, 1, 2], 3).offsets.tolist() == [0, 4, 5, 9]
    assert scores.grouped([0, 1, 2, 3], 4).offsets.tolist() == scores.offsets.tolist()
    assert scores.grouped([0, 0, 1, 2], 3).mean_logps().tolist() == [1.5, 4.0, 6.5]


@pytest.mark.parametrize("text", ["x " * 40_000, "x" * 2_000_000])
def test_texts_that_cannot_fit_are_refused_or_cut_before_they_are_tokenised(text: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = type("Counting", (type(tokenizer),), {"__call__": _refuse_long})
    one = Example("long", (Message("user", "Q"),), text, source="f:1")
    with pytest.raises(DataError, match=rf"f:1: {len(text):,} characters do not fit into max_length 512"):
        encode_all(tokenizer, [one], EncodingConfig())
    rows, report = encode_all(tokenizer, [one], EncodingConfig(truncate=True))
    assert len(rows[0].input_ids) == 512
    assert report.cut_tokens == pytest.approx(len(text) - 512, rel=0.01)
    asked = Example("long", (Message("user", text),), "A", source="f:2")
    with pytest.raises(DataError, match=rf"f:2: the prompt has {len(text):,} characters"):
        encode_all(tokenizer, [asked], EncodingConfig(truncate=True))
    with pytest.raises(DataError, match=r"encoding.system_prompt has 5,000,000 characters"):
        encode_all(tokenizer, [one], EncodingConfig(system_prompt="x" * 5_000_000))


def _refuse_long(self, text, **options):
    assert len(text) < 70_000
    return super(type(self), self).__call__(text, **options)
