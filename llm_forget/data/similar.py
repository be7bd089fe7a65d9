"""BM25 over a few thousand rows in memory: which rows are worded like others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_forget.data.entities import find_names, prompt_text
from llm_forget.data.examples import Example

_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75  # the usual constants


def rarity(holding: Any, rows: int) -> Any:
    """BM25's weight of words that ``holding`` of ``rows`` texts hold: ``ln(1 + (N − n + ½) / (n + ½))``. Numbers or arrays."""
    return np.log1p((rows - holding + 0.5) / (holding + 0.5))


def saturation(often: Any, length: Any, mean: float) -> Any:
    """BM25's weight of texts that hold a word ``often`` times: ``f / (f + k₁ (1 − b + b · length / mean length))``."""
    return often / (often + _K1 * (1 - _B + _B * length / mean))


class BM25:
    """BM25 scores of texts for a query: the sum of ``rarity`` times ``saturation`` over the query's words.

    ``find.corpus`` has the same scores for millions of rows.

    Args:
        texts: the texts.

    Source: Robertson and Zaragoza 2009, Foundations and Trends in Information Retrieval 3(4), in Lucene's variant.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = [sum(one.values()) for one in counts]
        mean = sum(lengths) / max(len(lengths), 1) or 1.0
        self._holders: dict[str, list[tuple[int, float]]] = {}
        for index, (one, length) in enumerate(zip(counts, lengths, strict=True)):
            for word, number in one.items():
                self._holders.setdefault(word, []).append((index, float(saturation(number, length, mean))))
        self._size = len(texts)

    def best(self, query: str, most: int) -> list[int]:
        """The indices of the best texts, best first; texts without a word of the query are left out."""
        scores: Counter[int] = Counter()
        for word in set(words(query)):
            holders = self._holders.get(word, [])
            rare = float(rarity(len(holders), self._size))
            for index, weight in holders:
                scores[index] += rare * weight  # type: ignore[assignment]
        return [index for index, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:most]]


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.casefold())


def mined_neighbours(forget: Sequence[Example], pool: Sequence[Example], most: int) -> list[int]:
    """The rows that are worded most like forget questions and are not about their names.

    The words of the names do not count, so that the rows are found by their wording. Rows that hold the full name of a forget
    row are left out: they may hold what is to be forgotten.

    Args:
        forget: the forget rows.
        pool: rows to keep, such as the training set without the forget rows.
        most: number of rows for each forget row.

    Returns:
        Indices into ``pool``, each once, the best of each forget row first.
    """
    names = {name.full for name in find_names(forget, pool) if name is not None}
    inside = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names))) if names else None
    own = [f"{prompt_text(row)} {row.answer}" for row in pool]
    kept = [index for index, text in enumerate(own) if inside is None or not inside.search(text)]
    index = BM25([prompt_text(pool[place]) for place in kept])
    found: dict[int, None] = {}
    ranked = []
    for example in forget:
        question = prompt_text(example)
        ranked.append(index.best(question if inside is None else inside.sub(" ", question), most))
    for place in range(most):
        found |= dict.fromkeys(kept[best[place]] for best in ranked if place < len(best))
    return list(found)
