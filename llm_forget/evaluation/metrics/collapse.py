"""Collapse: answers that are empty or repeat in a loop. Other metrics score them as forgotten, but they are damage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.metrics.repetition import words
from llm_forget.evaluation.tokens import Floats, as_floats

# A unit of up to 80 characters, three times or more in a row.
_LOOP = re.compile(r"(.{1,80}?)\1{2,}", re.DOTALL)
# Shorter loops such as "999", "www" and "no, no, no" can be real answers.
_SHORTEST_LOOP = 20


def is_looping(text: str) -> bool:
    """Whether a unit repeated three or more times in a row covers at least half of a text and at least 20 characters."""
    # a space is added at the end, so that the last "no" of "no no no" matches the others
    plain = " ".join(text.split()) + " "
    longest = max((match.end() - match.start() for match in _LOOP.finditer(plain)), default=0)
    return longest >= _SHORTEST_LOOP and 2 * longest >= len(plain)


def collapse(generated: Sequence[str]) -> Floats:
    """1 for an answer without a word or in a loop (``is_looping``), 0 for any other.

    Args:
        generated: (E) answers.

    Returns:
        (E,) of 0 and 1. "", "..." and "the the the the the the" are 1; "She was born in Lima." and "I don't know." 0.

    Source: defined here.
    """
    return as_floats([not words(text) or is_looping(text) for text in generated])


@dataclass(frozen=True)
class Collapse:
    """Share of generated answers that are empty or loop."""

    paper: ClassVar[str] = "defined by this project"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "collapse"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) 0 or 1 for each generated answer."""
        return collapse(known.generated or [])
