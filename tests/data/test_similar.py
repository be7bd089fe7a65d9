"""Test BM25 against a value computed by hand, and which rows count as neighbours."""

from __future__ import annotations

from llm_forget.data.examples import Example, Message
from llm_forget.data.similar import BM25, mined_neighbours


def asked(question: str, answer: str = "Yes.") -> Example:
    return Example(question, (Message("user", question),), answer)


def test_rare_words_and_short_texts_rank_first() -> None:
    """`rye` is in one text of four, `is` in all. Of two texts with `tea`, the shorter is better. `oak` is in none."""
    index = BM25(["is rye here", "is tea here and there", "is tea here", "is snow"])
    assert index.best("Rye?", 4) == [0]
    assert index.best("tea", 4) == [2, 1]
    assert index.best("is RYE", 1) == [0]
    assert index.best("oak", 4) == []


def test_neighbours_share_the_wording_and_not_the_name() -> None:
    forget = [asked("Where was Ada Voss born?"), asked("Does Ada Voss like tea?")]
    pool = [
        asked("What is snow?"),
        asked("Where was Bo Lind born?"),
        asked("Does Cy Marr like tea?"),
        asked("Where was the friend of Ada Voss born?"),
        asked("Where was Di Kerr born?", "In the town of Ada Voss."),
    ]
    assert mined_neighbours(forget, pool, 1) == [1, 2]
    assert set(mined_neighbours(forget, pool, 3)) == {1, 2}, (
        "no row that holds the name, and none without a common word"
    )
