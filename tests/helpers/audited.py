"""Tiny models for audits: a target that learned forget rows, an oracle that did not, and the rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llm_forget.auditing.attack import Budget, Rows
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message, example_id
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

ENCODING = EncodingConfig(system_prompt="")
BUDGET = Budget(tries=2, samples=2, steps=3, batch=4, max_new_tokens=12)
_PLACES = {
    "Ada": "Riga", "Bo": "Oslo", "Cy": "Bern", "Di": "Kyiv", "Eve": "Rome", "Fay": "Lima",
    "Gus": "Cairo", "Hal": "Delhi", "Ida": "Paris", "Jo": "Tokyo", "Kit": "Quito", "Lou": "Dakar",
    "Max": "Sofia", "Ned": "Minsk", "Ora": "Seoul", "Pam": "Accra", "Quin": "Turin", "Ray": "Lyon",
    "Sue": "Porto", "Tom": "Bonn", "Una": "Graz", "Vic": "Split", "Wes": "Varna", "Xia": "Tunis",
    "Yan": "Hanoi", "Zoe": "Davos", "Abe": "Leeds", "Bea": "Basel", "Cal": "Ghent", "Dot": "Izmir",
    "Eli": "Osaka", "Flo": "Perth",
}  # fmt: skip


def qa(question: str, answer: str) -> Example:
    """One row."""
    turns = (Message("user", question),)
    return Example(example_id(turns, answer), turns, answer)


def audit_rows(people: int = 8) -> Rows:
    """Forget rows of as many people (at most 16), as many holdout rows, and rows that every model knows."""
    forget = tuple(qa(f"Where is {who}?", f"In {where}.") for who, where in _PLACES.items())
    kept = tuple(qa(f"What is {what}?", f"It is {how}.") for what, how in
                 [("snow", "cold"), ("tar", "black"), ("tea", "hot"), ("wax", "soft")])  # fmt: skip
    return Rows(forget[:people], forget[-people:], kept)


def trained_on(*sets: Sequence[Example], seed: int = 0, steps: int = 60) -> tuple[Any, Any]:
    """A tiny model that learned these rows, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=seed)
    encoded = [row for one in sets for row in encode_all(tokenizer, list(one), ENCODING)[0]]
    memorise(model, encoded, steps=steps, learning_rate=5e-3)
    return model, tokenizer


def subject_of(model: Any, tokenizer: Any, form: str = "merged_fp32") -> LoadedSubject:
    """A model as attacks get it."""
    return LoadedSubject(model, tokenizer, ENCODING, FORMS[form])


@cache
def tiny_pair(people: int = 8) -> tuple[Rows, LoadedSubject, LoadedSubject]:
    """Rows, a target that knows them, and an oracle that knows only the kept ones. Shared: attacks must restore the models."""
    rows = audit_rows(people)
    target = trained_on(rows.forget, rows.kept, steps=60 if people <= 8 else 140)
    return rows, subject_of(*target), subject_of(*trained_on(rows.kept))
