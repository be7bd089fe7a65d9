"""Paraphrases: rows whose hidden states in the model are close to those of an answer or a given row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import of_others
from llm_forget.find.search import Search


@dataclass(frozen=True)
class Paraphrases:
    """The model compares a text with the rows that share most words with it, and with the rows that were found.

    A row is a paraphrase if its similarity stands out among those: by ``spread`` times their median absolute deviation.

    Attributes:
        rows: rows per text that are compared.
        texts: most texts.
        spread: deviations above the median; a normal distribution has 1.5 in one standard deviation.
        least: similarity that is needed in any case.
        score: of a paraphrase.
        others: of one that is about somebody else.
    """

    rows: int = 200
    texts: int = 20
    spread: float = 6.0
    least: float = 0.4
    score: float = 0.6
    others: float = 0.2

    order: ClassVar[int] = 60

    def skipped(self, search: Search) -> str | None:
        """Only with a model, and a text to paraphrase."""
        if not (search.query.answers or search.query.texts):
            return "no answer and no row is given"
        return None if search.model is not None else "no --model is given, whose hidden states would tell"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows that stand out."""
        from llm_forget.find.hidden import centred, text_means

        if search.model is None:
            return
        texts = [*search.query.outputs, *search.query.texts]
        if len(texts) > self.texts:
            search.missed["paraphrases"] = f"only of the first {self.texts} of {len(texts)} texts"
        members = set(search.candidates(1_000, 0.6))
        # the model reads each row once, also if several texts have it among their rows
        compared = {text: top(search.corpus.bm25(text), self.rows) for text in dict.fromkeys(texts[: self.texts])}
        compared = {text: rows for text, rows in compared.items() if len(rows) >= 10}  # fewer do not show what is usual
        read = sorted({row for rows in compared.values() for row in rows})
        means = text_means(search.model, [*compared, *map(search.corpus.text, read)])
        place = {row: len(compared) + at for at, row in enumerate(read)}
        for number, rows in enumerate(compared.values()):
            vectors = centred(means[[number, *(place[row] for row in rows)]])
            similar = vectors[1:] @ vectors[0]
            middle = float(np.median(similar))
            deviation = float(np.median(np.abs(similar - middle)))
            for row, value in zip(rows, similar, strict=True):
                if value >= max(self.least, middle + self.spread * deviation):
                    yield Evidence(row, "paraphrase", self.others if of_others(search, row, members) else self.score)
