"""Prompts that attacks build, the choice among settings, and hooks that leave no trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from audited import qa, tiny_pair
from leaky_models import people

from llm_forget.auditing.attack import Budget, Rows
from llm_forget.auditing.attacks.extraction import extracted
from llm_forget.auditing.attacks.multi_hop import chained
from llm_forget.auditing.attacks.prefill import continued
from llm_forget.auditing.tools.asking import after, companions, question_of, subject_of, under_system
from llm_forget.auditing.tools.side_adapter import SideAdapter, linear_layers
from llm_forget.auditing.tools.tuning import tuned
from llm_forget.evaluation.tokens import Floats, TokenScores


def test_a_subject_is_the_longest_name_that_two_questions_share() -> None:
    assert subject_of("Where does Ana Lu Berg live?", "What does Ana Lu Berg's card say?") == "Ana Lu Berg"
    assert subject_of("Where is Ana Berg?", "Where is Bo Falk?") is None
    assert subject_of("where is ana berg?", "when was ana berg born?") is None


def test_companions_have_the_same_subject_or_are_neighbours() -> None:
    asked = [qa(f"{what} Ana Berg?", "x") for what in ("Where is", "Who is")] + [qa("Where is Bo Falk?", "x")]
    assert companions(asked) == [[1], [0], []]
    assert companions([qa("a?", "x"), qa("b?", "x"), qa("c?", "x")]) == [[1], [0, 2], [1]]


def test_a_chain_hides_the_name() -> None:
    chain = chained(qa("Where is Ana Berg?", "In Riga."), qa("What likes Ana Berg?", "Tea."), "{fact} {question}")
    assert question_of(chain) == "Tea. Where is this person?"


def test_earlier_turns_stand_after_the_system_turn() -> None:
    example = after(under_system(qa("a?", "b"), "rules"), [qa("c?", "d")])
    assert not isinstance(example.prompt, str)
    assert [(turn.role, turn.content) for turn in example.prompt] == [
        ("system", "rules"), ("user", "c?"), ("assistant", "d"), ("user", "a?")
    ]  # fmt: skip


def test_values_computed_by_hand() -> None:
    logps = np.log([0.25, 0.5, 0.5])
    scores = TokenScores(logps, logps > 0, logps, logps, np.array([0, 3]))
    assert continued(scores, 1) == pytest.approx([0.5])
    assert np.isnan(continued(scores, 3)).all()
    assert extracted(np.log([0.5, 1.0]), 2) == pytest.approx([0.75, 1.0])


def test_the_choice_never_sees_the_rows_that_it_scores() -> None:
    """One setting helps on the first half only and another on the second: each half gets the one that does not help it."""
    rows = Rows(people().forget)
    middle = len(rows.held)

    def score(half: int | None, asked: Sequence[int]) -> Floats:
        return np.array([1.0 if half is not None and (row >= middle) == bool(half) else 0.1 for row in asked])

    found = tuned(rows, Budget(tries=2), {"plain": None, "first": 0, "second": 1}, score)
    assert found.scores == pytest.approx(0.1)
    assert found.chosen["setting"] == "second / first"
    assert tuned(rows, Budget(tries=2), {"plain": None, "same": None}, score).chosen["setting"] == "plain"


def test_a_new_side_adapter_changes_nothing_and_a_filled_one_each_layer() -> None:
    rows, target, _ = tiny_pair()
    model = target.model
    before = target.score(rows.forget).token_logps
    adapter = SideAdapter(model, rank=4)
    assert len(adapter.layers) == len(linear_layers(model)) == 7 * model.config.num_hidden_layers
    with target.changed(weights=False), adapter.active():
        np.testing.assert_array_equal(target.score(rows.forget).token_logps, before)
    adapter.fill(0.1, seed=0)
    for layer, a, b in zip(adapter.layers, adapter.A, adapter.B, strict=True):
        size = adapter.scale * (b @ a).norm() / layer.weight.norm()  # type: ignore[operator]
        assert float(size) == pytest.approx(0.1, rel=1e-4)
    with target.changed(weights=False), adapter.active():
        assert np.abs(target.score(rows.forget).token_logps - before).max() > 1e-3
