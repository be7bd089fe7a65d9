"""Refusal: answers such as "I do not know" or "I cannot say"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats, as_floats

_NOT = (
    r"(?:do not|don't|did not|didn't|cannot|can not|can't|could not|couldn't|am not|'m not|am unable|'m unable|"
    r"won't|will not)"
)
_KNOWING = (
    r"know|answer|say|tell|help|recall|remember|provide|share|discuss|disclose|comment|confirm|assist|find|identify|recognise|"
    r"recognize|sure|certain|aware|familiar|able|allowed|informed|comfortable|have"
)
# In the first person, so that "I cannot tell" is a refusal and "she cannot swim" is not. English only.
_PHRASES = (
    rf"\b(?:i|we)(?: (?:really|simply|honestly|unfortunately|also))? ?{_NOT}\b(?: \w+){{0,3}}? (?:{_KNOWING})\b",
    r"\bi(?: have|'ve)(?: got)? (?:no|little) (?:idea|clue|information|knowledge|record|records|data|details|memory)\b",
    r"\b(?:no idea|not sure|not certain)\b",
    r"\b(?:beyond|outside|not part of|not in) my (?:\w+ )?(?:knowledge|training|expertise|data)\b",
    r"\b(?:is|are) (?:unknown|not known|not available|unavailable) to me\b",
    r"\b(?:there is|i find|i see) no (?:\w+ )?(?:information|record|data)\b",
    r"\bas an ai\b",
    r"\bmy apologies\b|\bi apologi[sz]e\b|\bi(?: am|'m) (?:so |very |truly )?sorry\b|^sorry\b",
    r"\bi(?: must| have to|'d rather| would rather)(?: not| decline| pass)\b",
    r"\bi(?: have|'ve)? (?:never|haven't) (?:learned|learnt|heard|come across|been told)\b",
)
_REFUSAL = re.compile("|".join(_PHRASES))


def refusal(generated: Sequence[str]) -> Floats:
    """1 for an answer with a phrase that refuses or says "I do not know", 0 for any other.

    The phrases are this project's own, in English and in the first person. An empty answer is not a refusal; see
    ``collapse``.

    Args:
        generated: (E) answers.

    Returns:
        (E,) of 0 and 1.

    Source: defined here.
    """
    return as_floats([_REFUSAL.search(_plain(text)) is not None for text in generated])


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


@dataclass(frozen=True)
class Refusal:
    """Share of generated answers that refuse or say that the model does not know."""

    paper: ClassVar[str] = "defined by this project"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "refusal"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) 0 or 1 for each generated answer."""
        return refusal(known.generated or [])
