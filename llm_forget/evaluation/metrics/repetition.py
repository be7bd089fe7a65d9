"""Repetition: how much of an answer the model has already said in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats

# Scripts that put no space between words, read character by character.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text, without case or punctuation; of Chinese and Japanese the characters."""
    return _WORD.findall(text.casefold())


def distinct_n(texts: Sequence[str], *, n: int) -> Floats:
    """Different n-grams of words over all n-grams, of each text.

    Args:
        texts: (E) generated answers.
        n: words an n-gram.

    Returns:
        (E,) in (0, 1]; NaN for a text of fewer than n words, which has no n-gram. "a b a b a" has four pairs, of which
        two are different: ½.

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
        n: words an n-gram.
    """

    n: int = 3

    paper: ClassVar[str] = "Li et al. 2016, arXiv:1510.03055; Welleck et al. 2020, arXiv:1908.04319"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "none"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.n < 1:
            raise ValueError(f"n is {self.n}; an n-gram has 1 word or more")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return f"repetition_{self.n}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) share of each generated answer."""
        return 1.0 - distinct_n(known.generated or [], n=self.n)
