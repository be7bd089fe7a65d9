"""Repetition: the share of an answer that repeats an earlier part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats

# Scripts without spaces between words; each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation; single characters for Chinese and Japanese."""
    return _WORD.findall(text.casefold())


def distinct_n(texts: Sequence[str], *, n: int) -> Floats:
    """Number of distinct word n-grams divided by the number of all n-grams, for each text.

    Args:
        texts: (E) generated answers.
        n: words per n-gram.

    Returns:
        (E,) in (0, 1]; NaN for a text of fewer than n words, which has no n-gram. "a b a b a" has four bigrams, two of them
        distinct: ½.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.2 (there over a whole corpus).
    """
    found = np.full(len(texts), np.nan)
    for index, text in enumerate(texts):
        said = words(text)
        grams = [tuple(said[start : start + n]) for start in range(len(said) - n + 1)]
        if grams:
            found[index] = len(set(grams)) / len(grams)
    return found


@dataclass(frozen=True)
class Repetition:
    """Share of an answer's n-grams that repeat an earlier one: ``1 − distinct-n``.

    Attributes:
        n: words per n-gram.
    """

    n: int = 3

    paper: ClassVar[str] = "Li et al. 2016, arXiv:1510.03055; Welleck et al. 2020, arXiv:1908.04319"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.n < 1:
            raise ValueError(f"n is {self.n}; give the words per n-gram, 1 or more")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return f"repetition_{self.n}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) share for each generated answer."""
        return 1.0 - distinct_n(known.generated or [], n=self.n)
