"""Attribution: the rows that taught the model an answer, by their effect on the model and not by their words."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from llm_forget.errors import DataError
from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.search import Model, Search
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class

_ATTRIBUTION = "llm_forget.find.attribution"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Taught:
    """Rows whose attribution score stands out from that of random rows.

    The model reads every row of a small corpus. Of a larger one it reads the best rows so far and those with similar words,
    and a random sample.

    Attributes:
        most: the most rows that the model reads.
        background: random rows among them, which show how scores of unrelated rows vary.
        least: a row stands out if its score lies this many robust standard deviations above the median of the random rows.
        score: of such a row: alone, it is unsure.
        far: of a row at twice the distance.
    """

    most: int = 2000
    background: int = 500
    least: float = 3.0
    score: float = 0.2
    far: float = 0.5

    order: ClassVar[int] = 60

    def skipped(self, search: Search) -> str | None:
        """Only when asked for, because it runs the model on many rows."""
        if search.attribution is None:
            return "attribution was not asked for (--attribution)"
        if search.model is None:
            return "attribution needs a model (--model)"
        return None if search.query.answers else "attribution needs an answer (--answer or --ask)"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows that stand out, and those far out with a higher score."""
        name, model = search.attribution, search.model
        if name is None or model is None:
            return
        kind: Any = build(find_class(_ATTRIBUTION, name, "row_scores"), {}, name)
        rows, background = self._rows(search)
        encoded, unread = _encoded(model, search.examples(rows))
        asked = [one for one in _encoded(model, search.output_examples())[0] if one is not None]
        if not asked:
            search.notes.append("attribution: the model cannot read the answer")
            return
        places = [place for place, one in enumerate(encoded) if one is not None]
        scores = np.full(len(rows), np.nan)
        scores[places] = kind.row_scores(
            model.model,
            [encoded[place] for place in places],
            asked,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        if unread:
            search.notes.append(f"attribution: the model cannot read {unread} of {len(rows)} rows")
        for row, distance in zip(rows, standing_out(scores, background), strict=True):
            if distance >= self.least:
                yield Evidence(row, "taught it", self.far if distance >= 2 * self.least else self.score)

    def _rows(self, search: Search) -> tuple[list[int], list[int]]:
        """The rows that the model reads, and the places of the random rows among them."""
        count = len(search.corpus)
        if count <= self.most:
            return list(range(count)), list(range(count))
        chosen = dict.fromkeys(search.candidates((self.most - self.background) // 2))
        for output in search.query.outputs:
            for row in top(search.corpus.bm25(output), self.most):
                if len(chosen) >= self.most - self.background:
                    break
                chosen[row] = None
        drawn = [row for row in random.Random(0).sample(range(count), self.background) if row not in chosen]
        search.notes.append(f"attribution: the model read {len(chosen) + len(drawn):,} of {count:,} rows")
        return [*chosen, *drawn], list(range(len(chosen), len(chosen) + len(drawn)))


def standing_out(scores: Floats, background: list[int]) -> Floats:
    """Distance of each score from the median of the background, in robust standard deviations of the background.

    Args:
        scores: (E,) NaN where there is none.
        background: places of rows that are unrelated, for the most part.

    Returns:
        (E,) −∞ where there is no score. A standard deviation is 1.4826 times the median absolute deviation.
    """
    known = scores[background][np.isfinite(scores[background])]
    if not len(known):
        return np.full(len(scores), -np.inf)
    median = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - median)))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (scores - median) / spread
    return np.where(np.isfinite(distance), distance, -np.inf)


def _encoded(model: Model, examples: Any) -> tuple[list[Any], int]:
    """Encoded examples, None for those that the model cannot read, and their number. Long ones are cut."""
    from llm_forget.data.encode import encode

    config = replace(model.encoding, truncate=True, chunk=False)
    found: list[Any] = []
    for example in examples:
        try:
            found.append(encode(model.tokenizer, example, config))
        except DataError:
            found.append(None)
    return found, sum(one is None for one in found)
