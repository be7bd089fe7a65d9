"""Test the order of rows in a run: coverage, the share of each process, and reproducibility."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llm_forget.data.schedule import schedule

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)
any_retain = st.lists(st.integers(1, 50), max_size=40)
batches, epochs, seeds = st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31)


@given(lengths, any_retain, batches, epochs, seeds)
def test_whole_batches_cover_the_forget_rows_evenly(
    forget: list[int], retain: list[int], batch: int, epochs: int, seed: int
) -> None:
    pairs = schedule(forget, retain, batch=batch, epochs=epochs, seed=seed)
    assert len(pairs) % batch == 0
    assert len(forget) * epochs <= len(pairs) < len(forget) * epochs + batch
    seen = Counter(index for index, _ in pairs)
    assert set(seen) == set(range(len(forget)))
    assert min(seen.values()) >= epochs
    assert max(seen.values()) - min(seen.values()) <= 1


@given(lengths, lengths, batches, epochs, seeds)
def test_draws_the_retain_rows_equally_often(
    forget: list[int], retain: list[int], batch: int, epochs: int, seed: int
) -> None:
    pairs = schedule(forget, retain, batch=batch, epochs=epochs, seed=seed)
    seen = Counter(index for _, index in pairs)
    counts = [seen[index] for index in range(len(retain))]
    assert sum(counts) == len(pairs), "every forget row meets a retain row"
    assert max(counts) - min(counts) <= 1


@given(lengths, batches, epochs, seeds)
def test_without_retain_rows_none_are_drawn(forget: list[int], batch: int, epochs: int, seed: int) -> None:
    pairs = schedule(forget, [], batch=batch, epochs=epochs, seed=seed)
    assert {kept for _, kept in pairs} == {None}
    with_some = schedule(forget, [1, 2], batch=batch, epochs=epochs, seed=seed)
    assert [index for index, _ in pairs] == [index for index, _ in with_some], "the forget order does not depend on it"


@given(lengths, any_retain, batches, epochs, seeds)
def test_the_order_depends_only_on_the_seed(
    forget: list[int], retain: list[int], batch: int, epochs: int, seed: int
) -> None:
    first, second = (schedule(forget, retain, batch=batch, epochs=epochs, seed=seed) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_order() -> None:
    orders = [schedule([5] * 20, [5] * 20, batch=4, epochs=1, seed=seed) for seed in range(5)]
    for column in (0, 1):
        assert len({tuple(pair[column] for pair in order) for order in orders}) == 5


def test_pairs_change_from_epoch_to_epoch() -> None:
    pairs = schedule([5] * 8, [5] * 8, batch=8, epochs=4, seed=0)
    partners = [dict(pairs[start : start + 8]) for start in range(0, 32, 8)]
    assert any(partners[0][row] != partners[1][row] for row in range(8))


@given(lengths, any_retain, seeds, st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]))
def test_any_split_of_the_same_step_sees_the_same_rows(
    forget: list[int], retain: list[int], seed: int, split: tuple[int, int]
) -> None:
    """8 rows per step as batch × accumulation × processes; accelerate assigns consecutive batches to processes in turn."""
    processes, accumulation = split
    size = 8 // (processes * accumulation)
    pairs = schedule(forget, retain, batch=size * accumulation * processes, epochs=2, seed=seed)
    dealt = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    shares = [dealt[rank::processes] for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1, "no process waits for another at the end"
    whole = schedule(forget, retain, batch=8, epochs=2, seed=seed)
    for step in range(len(whole) // 8):
        mine = [
            pair for share in shares for rows in share[step * accumulation : (step + 1) * accumulation] for pair in rows
        ]
        assert Counter(mine) == Counter(whole[step * 8 : (step + 1) * 8])


def test_batches_hold_rows_of_similar_length() -> None:
    """Padding is the number of tokens after padding over the number before. Unsorted, it would be about 1.8 here."""
    forget, retain = list(range(1, 65)), list(range(1, 65))
    pairs = schedule(forget, retain, batch=4, epochs=1, seed=0)
    steps = [pairs[start : start + 4] for start in range(0, 64, 4)]
    padded = sum(8 * max(max(forget[f], retain[r or 0]) for f, r in step) for step in steps)
    assert padded < 1.6 * (sum(forget) + sum(retain))
    firsts = [max(forget[f] for f, _ in step) for step in steps]
    assert firsts != sorted(firsts), "and short batches do not all come first"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), any_retain, batches, seeds)
def test_a_batch_holds_no_row_more_often_than_it_must(
    forget: list[int], retain: list[int], batch: int, seed: int
) -> None:
    """Copies of a row have equal length; grouped by length over several epochs they once filled a batch."""
    pairs = schedule(forget, retain, batch=batch, epochs=6, seed=seed)
    for start in range(0, len(pairs), batch):
        for column, rows in ((0, forget), (1, retain)):
            drawn = Counter(pair[column] for pair in pairs[start : start + batch])
            if rows:
                assert max(drawn.values()) <= -(-batch // len(rows)) + 1  # a batch can span two permutations
