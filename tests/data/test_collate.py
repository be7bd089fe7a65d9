"""Test that padding and masks depend on positions and not on the pad token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError

PAD = 7


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(0, 9), min_size=2, max_size=12))  # the pad token is included
    return Encoded("x", tuple(ids), draw(st.integers(1, len(ids) - 1)))


def test_pads_on_the_right_and_marks_answers_with_pad_as_end_token() -> None:
    batch = collate([Encoded("a", (1, 2, 3, PAD), 2), Encoded("b", (4, PAD), 1)], PAD)
    assert batch["input_ids"].tolist() == [[1, 2, 3, PAD], [4, PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["answer_mask"].tolist() == [[False, False, True, True], [False, True, False, False]]
    assert (batch["input_ids"].dtype, batch["attention_mask"].dtype) == (torch.long, torch.long)
    assert batch["answer_mask"].dtype == torch.bool


@given(st.lists(encoded(), min_size=1, max_size=5), st.none() | st.integers(1, 9))
def test_every_row_can_be_read_back(rows: list[Encoded], multiple: int | None) -> None:
    batch = collate(rows, PAD, multiple)
    width = batch["input_ids"].shape[1]
    longest = max(len(row.input_ids) for row in rows)
    assert longest <= width < longest + (multiple or 1)
    assert width % (multiple or 1) == 0
    for index, row in enumerate(rows):
        kept = batch["input_ids"][index][batch["attention_mask"][index].bool()]
        assert tuple(kept.tolist()) == row.input_ids
        answer = batch["input_ids"][index][batch["answer_mask"][index]]
        assert tuple(answer.tolist()) == row.input_ids[row.prompt_length :]
        assert set(batch["input_ids"][index, len(row.input_ids) :].tolist()) <= {PAD}


@given(st.lists(encoded(), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_masks_do_not_depend_on_the_pad_token(rows: list[Encoded], first: int, second: int) -> None:
    one, other = collate(rows, first), collate(rows, second)
    assert torch.equal(one["attention_mask"], other["attention_mask"])
    assert torch.equal(one["answer_mask"], other["answer_mask"])


@pytest.mark.parametrize("prompt_length", [-1, 0, 3, 4])
def test_refuses_rows_without_prompt_or_answer(prompt_length: int) -> None:
    with pytest.raises(DataError, match="abc has 3 tokens"):
        collate([Encoded("abc", (1, 2, 3), prompt_length)], PAD)


def test_refuses_an_empty_batch_and_a_width_of_zero() -> None:
    with pytest.raises(DataError, match="at least 1"):
        collate([], PAD)
    with pytest.raises(DataError, match="pad_to_multiple_of is 0"):
        collate([Encoded("a", (1, 2), 1)], PAD, 0)
