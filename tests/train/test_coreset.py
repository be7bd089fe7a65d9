"""Test the choice of a few retain rows, and that a run trains on these and on no others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from memorised import write_memorised
from rich.console import Console
from test_method_runs import recipe_of

from llm_forget.data.encode import Encoded
from llm_forget.data.examples import Example, Message
from llm_forget.data.schedule import evenly
from llm_forget.errors import RecipeError
from llm_forget.train.coreset import coreset
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.run import Run
from llm_forget.train.unlearn import unlearn

TEXTS = ["What is snow?", "Where does Bo Lund live?", "What is tar?", "Where does Cy Nott live?", "How far is it?"]


def sets_of(*questions: str) -> UnlearnSets:
    examples = [Example(str(index), (Message("user", text),), "x") for index, text in enumerate(questions)]
    forget = [Example("f", (Message("user", "Where does Ada Voss live?"),), "y")]
    rows = [Encoded(one.id, (1, 2, 3), 1) for one in examples]
    return UnlearnSets([Encoded("f", (1, 2), 1)], forget, rows, rows, [], {}, [], retain_examples=examples)


def test_rows_worded_like_the_forget_rows_come_first() -> None:
    """Of five rows, two ask where somebody lives; a third one is any other."""
    assert coreset(sets_of(*TEXTS), 2) == [1, 3]
    three = coreset(sets_of(*TEXTS), 3)
    assert len(three) == 3
    assert {1, 3} < set(three)
    assert coreset(sets_of(*TEXTS), None) == coreset(sets_of(*TEXTS), 9) == [0, 1, 2, 3, 4]


def test_an_even_spread_has_both_ends() -> None:
    """160 of 280 rows reach to the last one; the first 160 would not."""
    assert evenly(5, 3) == [0, 2, 4]
    assert evenly(3, 5) == [0, 1, 2]
    many = evenly(280, 160)
    assert len(set(many)) == 160
    assert (many[0], many[-1]) == (0, 279)


def test_without_a_common_word_rows_are_evenly_spaced() -> None:
    assert coreset(sets_of("aaa", "bbb", "ccc", "ddd", "eee"), 3) == [0, 2, 4]


@pytest.mark.parametrize("method", ["npo", "adapter_subtraction"])
def test_a_run_trains_on_these_rows_only(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retain = [(text, f"Thing {index}.") for index, text in enumerate(TEXTS)]
    folder = write_memorised(
        tmp_path,
        {
            "forget": [("Where does Ada Voss live?", "In Riga."), ("Where does Eve Holm live?", "By the sea.")],
            "retain": retain,
        },
    )
    used: set[int | None] = set()
    train = Run.train

    def spy(self: Run, objective: Any, pairs: Any, *arguments: Any, **named: Any) -> Any:
        if objective.rows.retain is not None:
            used.update(retain for _, retain in pairs)
        return train(self, objective, pairs, *arguments, **named)

    monkeypatch.setattr(Run, "train", spy)
    recipe = recipe_of(folder, tmp_path, method={"name": method}, retain={"most": 2})
    unlearn(recipe, Console(file=io.StringIO()))
    assert used == {1, 3}


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="most is 0; give 1 or more rows"):
        recipe_of(tmp_path, tmp_path, retain={"most": 0})
