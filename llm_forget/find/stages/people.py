"""The person that an answer or a given row is about, whose other rows the next stages find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.find.corpus import top
from llm_forget.find.hits import Evidence
from llm_forget.find.mentions import mentions, subject_in_record, weight
from llm_forget.find.search import Search, Subject
from llm_forget.find.spans import Mentions, spans


@dataclass(frozen=True)
class People:
    """From each text to one person: the subject of the rows that are most like it, and the names in the text itself.

    Attributes:
        rows: the most similar rows that are looked at.
        power: of a row's BM25 score relative to the best; higher, and only the best row counts.
        copy: how many times more a near copy of the text counts.
        clear: the second person may have this share of the first one's weight at most. Otherwise nobody is chosen.
        score: of the rows of several people when nobody is chosen.
    """

    rows: int = 10
    power: float = 4.0
    copy: float = 2.0
    clear: float = 0.8
    score: float = 0.3

    order: ClassVar[int] = 20

    def skipped(self, search: Search) -> str | None:
        """Only answers and rows have to be traced to a person."""
        return None if search.query.answers or search.query.texts else "no answer and no row is given"

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """Adds people to the search; rows only if several people fit equally well."""
        known = {one.name.casefold() for one in search.people}
        for text in (*search.query.outputs, *search.query.texts):
            weights = self.weights(search, text)
            ranked = sorted(weights, key=lambda key: -weights[key])
            if not ranked:
                continue
            near = [key for key in ranked if weights[key] >= self.clear * weights[ranked[0]]]
            if len(near) == 1:
                if ranked[0] not in known:
                    search.people.append(Subject(_written(search, mentions(search, ranked[0])), given=False))
                    known.add(ranked[0])
                continue
            search.notes.append(
                f"an answer fits {len(near)} people about equally well; give the question that led to it (--question), or a name"
            )
            for group, key in enumerate(near, start=1):
                for row in mentions(search, key).rows:
                    yield Evidence(row, "one of several people", self.score, group)

    def weights(self, search: Search, text: str) -> dict[str, float]:
        """Folded name → how much speaks for it: the rows about it that are like the text, plus up to 1 for a name in the text."""
        scores = search.corpus.bm25(text)
        weights: dict[str, float] = {}
        best = top(scores, self.rows)
        copies = {one.row for row in best for one in search.found.get(row, ()) if one.reason == "near copy"}
        for row in best:
            found = subject_in_record(search, row)
            if found is not None:
                here = float(scores[row] / scores[best[0]]) ** self.power * (1 + self.copy * (row in copies))
                weights[found.key] = weights.get(found.key, 0.0) + here
        named = {span.key: weight(mentions(search, span.key)) for span in spans(text, search.casing) if not span.title}
        most = max([*named.values(), *(weight(mentions(search, key)) for key in weights)], default=0.0)
        for key, strength in named.items():
            if strength > 0:
                weights[key] = weights.get(key, 0.0) + strength / most
        return _joined(search, weights)


def _joined(search: Search, weights: dict[str, float]) -> dict[str, float]:
    """Give the weight of a part (``lovelace``) to the whole (``ada lovelace``), or to the part if it is the stronger name."""
    found = dict(weights)
    for key in sorted(weights, key=len):
        longer = [other for other in found if other != key and f" {key} " in f" {other} "]
        if len(longer) == 1 and key in found:
            stronger = mentions(search, key).strength > mentions(search, longer[0]).strength
            source, target = (longer[0], key) if stronger else (key, longer[0])
            found[target] += found.pop(source)
    return found


def _written(search: Search, found: Mentions) -> str:
    """A name as the rows write it."""
    for row in found.rows:
        for span in search.spans(row):
            if span.key == found.key:
                return span.text
    return found.key
