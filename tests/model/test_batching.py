"""Test batches of similar length, their split over processes, and the return of values in row order."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_examples import Rank
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_forget.data.encode import Encoded
from llm_forget.model.batching import answer_batches, answer_offsets, length_batches, over_batches, share_of

rows_of_lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=12).map(
    lambda sizes: [Encoded(str(n), tuple(range(length)), min(start, length)) for n, (length, start) in enumerate(sizes)]
)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(1, 9))
def test_batches_hold_each_row_once_within_the_budget(lengths: list[int], tokens: int, rows: int) -> None:
    batches = length_batches(lengths, tokens, rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert [lengths[index] for index in batch] == sorted((lengths[index] for index in batch), reverse=True)
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= tokens


@given(st.integers(0, 13), st.integers(1, 5))
def test_processes_share_batches_and_run_equally_many(count: int, processes: int) -> None:
    batches = [[index] for index in range(count)]
    shares = [list(share_of(batches, Rank(processes, rank))) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch[0] for share in shares for batch, counts in share if counts]
    assert sorted(counted) == list(range(count))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=30), st.integers(1, 90), st.integers(1, 40))
def test_answer_tokens_of_a_batch_are_limited(sizes: list[tuple[int, int]], tokens: int, most: int) -> None:
    lengths, answers = [one for one, _ in sizes], [other for _, other in sizes]
    batches = length_batches(lengths, tokens, answers=answers, batch_answers=most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or sum(answers[index] for index in batch) <= most for batch in batches)
    assert length_batches(lengths, tokens, answers=answers, batch_answers=1000) == length_batches(lengths, tokens)


@pytest.mark.parametrize(("ids", "start", "length"), [(5, 2, 3), (5, 1, 4), (5, 0, 4), (1, 0, 0), (1, 1, 0), (3, 3, 0)])
def test_the_first_token_of_a_sequence_is_never_scored(ids: int, start: int, length: int) -> None:
    assert Encoded("a", tuple(range(ids)), start).answer_length == length


@given(rows_of_lengths, st.integers(1, 40), st.integers(1, 3))
def test_values_are_returned_in_row_order(rows: list[Encoded], tokens: int, processes: int) -> None:
    """Each row returns its number and its tokens; the parts of the processes add up to all rows."""
    offsets = answer_offsets(rows)
    batches = answer_batches(rows, tokens)
    done: list[int] = []
    model = nn.Dropout()

    def compute(batch: list[int]) -> np.ndarray:
        assert not model.training
        parts = [
            (index, token) for index in batch for token in rows[index].input_ids[max(rows[index].prompt_length, 1) :]
        ]
        return np.array(parts, dtype=float).reshape(-1, 2).T

    class Alone(Rank):
        """Stand-in for a process whose sum over processes is its own part."""

        def reduce(self, tensor: object, reduction: str) -> object:
            return tensor

        device = "cpu"

    found = sum(
        over_batches(
            [model],
            batches,
            compute,
            np.zeros((2, int(offsets[-1]))),
            offsets,
            progress=done.append,
            accelerator=Alone(processes, rank),
        )
        for rank in range(processes)
    )
    expected = [(n, token) for n, row in enumerate(rows) for token in row.input_ids[max(row.prompt_length, 1) :]]
    np.testing.assert_array_equal(found, np.array(expected, dtype=float).reshape(-1, 2).T)
    assert sum(done) == sum(1 for row in rows if row.answer_length)
    assert model.training
