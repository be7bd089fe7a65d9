"""Greedy finds a model that was never unlearned."""

from __future__ import annotations

from audited import subject_of, trained_on
from planted import Planted, assert_found, sixteen

from llm_forget.auditing.attacks.greedy import Greedy

ATTACK = Greedy()


def plant() -> Planted:
    """A model that learned half of the rows."""
    rows, target, oracle = sixteen()
    return Planted(rows, target, oracle, subject_of(*trained_on(rows.forget[::2], rows.kept)))


def test_a_planted_leak_is_found() -> None:
    assert_found(ATTACK, plant())
