"""Translation: the model translates the question itself and answers it in English, if it knows the language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.asking import question_of, reworded
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned
from llm_forget.data.examples import Example, Message

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

ENGLISH = (
    "Where does the old teacher live?",
    "When was the bridge built?",
    "What is the name of her dog?",
    "Which colour is the door?",
    "Who wrote this letter?",
    "How much does the bread cost?",
)
# The same in each language. The first two are examples of the task, the others the trial whether the model knows the language.
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "French": (
        "Où habite le vieux professeur ?",
        "Quand le pont a-t-il été construit ?",
        "Comment s'appelle son chien ?",
        "De quelle couleur est la porte ?",
        "Qui a écrit cette lettre ?",
        "Combien coûte le pain ?",
    ),
    "Spanish": (
        "¿Dónde vive el viejo profesor?",
        "¿Cuándo se construyó el puente?",
        "¿Cómo se llama su perro?",
        "¿De qué color es la puerta?",
        "¿Quién escribió esta carta?",
        "¿Cuánto cuesta el pan?",
    ),
}
_SHOWN = 2
_KNOWN = 0.75  # share of the trial sentences whose own translation must be the most likely of the four
_LONGEST = 32


@dataclass(frozen=True)
class Translation(Attack):
    """Probability of the answer to the translated question, in the best language that the model knows."""

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.CHAT | Access.LOGPS
    source: ClassVar[str] = "arXiv:2601.06675, most methods do not forget in other languages"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row. A model that knows no language is asked in English; ``chosen`` says so."""
        known = [language for language in LANGUAGES if knows(subject, language) >= _KNOWN]
        if not known:
            return leaks(rows.forget, probabilities(subject, rows.forget), setting="plain", known="no language")

        def score(language: str, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            return probabilities(subject, examples if language == "plain" else _translated(subject, examples, language))

        return tuned(rows, budget, {one: one for one in ("plain", *known)}, score)


def knows(subject: Subject, language: str) -> float:
    """The share of trial sentences whose own translation is more likely than the others', in [0, 1]; ¼ by chance."""
    trial = list(zip(ENGLISH, LANGUAGES[language], strict=True))[_SHOWN:]
    asked = [Example("trial", _task(english, language), other) for english, _ in trial for _, other in trial]
    table = probabilities(subject, asked).reshape(len(trial), len(trial))
    return float((table.argmax(-1) == np.arange(len(trial))).mean())


def _task(text: str, language: str) -> tuple[Message, ...]:
    """Chat turns that ask for the translation of a text, after two examples."""
    turns: list[Message] = []
    for english, other in list(zip(ENGLISH, LANGUAGES[language], strict=True))[:_SHOWN]:
        turns += [Message("user", f"Translate into {language}: {english}"), Message("assistant", other)]
    return (*turns, Message("user", f"Translate into {language}: {text}"))


def _translated(subject: Subject, examples: Sequence[Example], language: str) -> list[Example]:
    """The examples with their questions in the model's own translation, and a request to answer in English."""
    tasks = [Example("task", _task(question_of(one) or "", language), "-") for one in examples]
    said = subject.ask(tasks, max_new_tokens=_LONGEST)
    return [
        reworded(one, lambda _, text=text: f"{text} (Answer in English.)")  # type: ignore[misc]
        for one, text in zip(examples, said, strict=True)
    ]
