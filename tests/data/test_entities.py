"""Test the search for names on rows of different kinds, and their exchange."""

from __future__ import annotations

import pytest

from llm_forget.data.entities import distinct_names, find_names, listed_names, prompt_text, swap, swap_text
from llm_forget.data.examples import DataSource, Example, Message, check_rows
from llm_forget.data.row import Row


def asked(question: str, answer: str = "Yes.", subject: str | None = None) -> Example:
    return Example("id", (Message("system", "You are Grok."), Message("user", question)), answer, subject=subject)


PEOPLE = [
    asked("Where was Ana de la Cruz-Ruiz born?", "Ana de la Cruz-Ruiz was born in Lima."),
    asked("Did Ruby Oak's father win the Nobel Prize?", "The father of Ruby Oak did, in May."),
    asked("What did Ruby study?", "She studied law in Lima."),
    asked("Is Lima the town of Ruby Oak?"),
    asked("J. K. Marlow wrote what?", "A novel."),
    asked("what is snow?"),
]


def test_the_name_is_the_most_frequent_run_of_capitals_in_the_question() -> None:
    """Lima is in three rows and Ruby Oak in three; two words are more than one. Ruby alone means Ruby Oak."""
    names = [name and name.full for name in find_names(PEOPLE)]
    assert names == ["Ana de la Cruz-Ruiz", "Ruby Oak", "Ruby Oak", "Ruby Oak", "J. K. Marlow", None]


def test_a_name_that_is_usual_elsewhere_is_not_what_a_row_is_about() -> None:
    rows = [asked("Does Bo like Pulitzer Prizes?"), asked("Has Cy a Pulitzer Prizes shelf?")]
    others = [asked(f"Who won {number} Pulitzer Prizes?") for number in range(4)]
    assert [name and name.full for name in find_names(rows)] == ["Pulitzer Prizes"] * 2
    assert [name and name.full for name in find_names(rows, others)] == ["Bo", "Cy"]
    assert distinct_names(PEOPLE, rows) == ["Ruby Oak", "Ana de la Cruz-Ruiz", "J. K. Marlow"]


def test_a_subject_column_is_the_name_wherever_the_question_holds_it() -> None:
    rows = [
        asked("Does water of lake baikal freeze in Irkutsk?", subject="lake baikal"),
        asked("Is Bo here?", subject="physics"),
    ]
    assert [name and name.full for name in find_names(rows)] == ["lake baikal", "Bo"]
    given = [Row("f:1", {"question": "Q Bo?", "answer": "A", "subject": value}) for value in ("Bo", 7, None, ["x"])]
    assert [row.subject for row in check_rows(iter(given), DataSource("f"))] == ["Bo", None, None, None]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is Ruby Oak the Oak of Oakham, Ruby?", "Is Mia Sol the Sol of Oakham, Mia?"),
        ("Ruby Oak's dog and Rubys", "Mia Sol's dog and Rubys"),
        ("Nothing.", "Nothing."),
    ],
)
def test_whole_words_are_exchanged_at_once(question: str, expected: str) -> None:
    name = find_names(PEOPLE)[1]
    assert name is not None
    assert prompt_text(swap(asked(question), name, "Mia Sol")) == expected
    assert swap_text(question, name, "Mia Sol") == expected
    assert prompt_text(swap(asked("Ruby Oak?"), name, "Oak Ruby")) == "Oak Ruby?", "no stand-in is exchanged again"


def test_plain_text_and_raw_prompts() -> None:
    text = Example("id", "", "Ruby Oak lives in Lima. Ruby Oak reads.")
    name = find_names([text])[0]
    assert name is not None
    assert name.full == "Ruby Oak"
    assert swap(text, name, "Mia Sol").answer == "Mia Sol lives in Lima. Mia Sol reads."
    raw = swap(Example("id", "Q: Ruby Oak?", "Ruby Oak."), name, "Mia Sol")
    assert (raw.prompt, raw.answer) == ("Q: Mia Sol?", "Ruby Oak.")
    assert "Ruby" not in repr(name)


def test_the_list_of_stand_ins() -> None:
    given, family = listed_names()
    assert min(len(given), len(family)) > 100
    assert all(len(set(names)) == len(names) and all(name.istitle() for name in names) for names in (given, family))
