"""Run the stages of a search one after the other over the rows, and rank what they find."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_forget.data.examples import DataSource, Example, check_rows, example_id
from llm_forget.data.row import Row
from llm_forget.errors import DataError
from llm_forget.find.corpus import Corpus, learnt_casing
from llm_forget.find.groups import contradictions, groups
from llm_forget.find.hits import KEEP, Evidence, Found, Hit, combined, decide
from llm_forget.find.query import Query
from llm_forget.find.record import searched_with
from llm_forget.find.sources import text_of
from llm_forget.find.spans import Casing, Span, spans
from llm_forget.find.words import words_of
from llm_forget.utils.plugins import find_class, names_in

if TYPE_CHECKING:
    import pandas as pd

_MOST_HITS = 10_000
_KEPT_ROWS = 20_000  # whose folded text is kept
_READ_FOR_NAMES = 50_000  # characters of a row


class Stage(Protocol):
    """One way to find rows: a file in ``llm_forget/find/stages`` with a frozen dataclass that has these members.

    Stages run in the order of ``order``; a later one sees what the earlier ones found. There is no list of them.
    """

    order: int

    def skipped(self, search: Search) -> str | None:
        """Why the stage has nothing to do, in words for the search record; None if it runs."""

    def evidence(self, search: Search) -> Iterable[Evidence]:
        """The rows that the stage finds. It may add to ``search.people`` and ``search.notes``."""


@dataclass
class Subject:
    """Somebody or something that rows are about.

    Attributes:
        name: as written by the user or in the data.
        given: whether the user gave the name.
    """

    name: str = field(repr=False)
    given: bool = True


@dataclass
class Model:
    """A model and what it needs to read rows, for stages that ask one.

    Attributes:
        model: a causal language model.
        tokenizer: its tokenizer.
        encoding: an ``EncodingConfig``.
    """

    model: Any
    tokenizer: Any
    encoding: Any


@dataclass
class Search:
    """A search while it runs: what the stages share.

    Attributes:
        corpus: the rows.
        query: what is searched for.
        model: for stages that need one; None without ``--model``.
        attribution: the kind of attribution that is asked for, or None.
        people: who the rows are about that are searched for; stages may add to it.
        notes: lines for the user.
        columns: our field names → the files' column names, as in a recipe.
        missed: what a stage did not search → why, for the search record.
    """

    corpus: Corpus
    query: Query
    model: Model | None = None
    attribution: str | None = None
    people: list[Subject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    found: dict[int, list[Evidence]] = field(default_factory=lambda: defaultdict(list), repr=False)

    @property
    def casing(self) -> Casing:
        """How words are written, learnt from a sample of the rows."""
        return learnt_casing(self.corpus)

    def spans(self, row: int) -> list[Span]:
        """The names and titles in a row, of a long one in its first characters."""
        known = self.corpus.spans
        if row not in known:
            known[row] = spans(self.corpus.text(row)[:_READ_FOR_NAMES], self.casing)
        return known[row]

    def folded(self, row: int) -> str:
        """The folded words of a row, with a space before, between and after them."""
        known = self.corpus.folded
        if row not in known:
            if len(known) >= _KEPT_ROWS:
                known.clear()
            known[row] = f" {' '.join(words_of(self.corpus.text(row)))} "
        return known[row]

    def score(self, row: int) -> float:
        """The score of a row so far."""
        return combined(_best(self.found.get(row, ())).values())

    def candidates(self, most: int, least: float = 0.0) -> list[int]:
        """The rows found so far, best first.

        Args:
            most: the most rows.
            least: the least score.
        """
        scored = [(self.score(row), row) for row in self.found]
        return [row for score, row in sorted(scored, key=lambda one: (-one[0], one[1])) if score >= least][:most]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """The examples that a model is trained on in rows, in the given order. A row without a form is plain text."""
        return [_example(row, self.columns) for row in self.corpus.values(rows)]

    def output_examples(self) -> list[Example]:
        """The answers that are searched for, each with its question, or as plain text without one."""
        questions = (*self.query.questions, *("" for _ in self.query.answers))
        return [
            _example(
                Row(f"--answer {number}", {"question": question, "answer": answer} if question else {"text": answer}),
                {},
            )
            for number, (question, answer) in enumerate(zip(questions, self.query.answers, strict=False), start=1)
        ]

    def run(self) -> Found:
        """Run all stages."""
        stages = [find_class(_STAGES, name, "evidence")() for name in names_in(_STAGES)]
        skipped: dict[str, str] = {}
        ran: list[str] = []
        for stage in sorted(stages, key=lambda one: one.order):
            name = type(stage).__module__.rsplit(".", 1)[-1]
            reason = stage.skipped(self)
            if reason is not None:
                skipped[name] = reason
                continue
            ran.append(name)
            for one in stage.evidence(self):
                self.found[one.row].append(one)
        hits = self._hits()
        return Found(
            hits=tuple(hits),
            searched=searched_with(self.corpus, self.query, ran, {**skipped, **self.missed}, hits),
            notes=tuple(dict.fromkeys([*self.corpus.notes, *self.notes])),
            people=tuple(dict.fromkeys(one.name for one in self.people)),
        )

    def _hits(self) -> list[Hit]:
        ranked = self.candidates(_MOST_HITS)
        kept = [row for row in ranked if self.score(row) >= KEEP]
        sought = len(self.query.people) + sum(not one.given for one in self.people)
        several = groups(self, kept) if sought <= 1 else {}  # several people have several groups anyway
        if several and not self.query.about:
            self.notes.append(
                f"the rows of this name fall into {max(several.values())} groups that share nothing else, perhaps several "
                "people: choose with --about (a town, an employer, a date), --email or --id"
            )
        elif not self.query.about and contradictions(self, kept):
            self.notes.append(
                "some rows answer the same question differently, perhaps about two people of one name: see --about"
            )
        meant = self._meant(kept, several)
        hits = []
        for row in ranked:
            best = _best(self.found[row])
            score, place = combined(best.values()), self.corpus.place(row)
            counts = Counter(one.group for one in self.found[row] if one.group is not None)
            group = several.get(row) or (counts.most_common(1)[0][0] if counts else None)
            reasons = tuple(sorted(best, key=lambda name: -best[name]))
            decision = "unsure" if meant is not None and row not in meant and score >= KEEP else decide(score)
            hits.append(Hit(place.file, place.line, score, reasons, decision, group, row))
        return hits

    def _meant(self, kept: Sequence[int], several: Mapping[int, int]) -> set[int] | None:
        """The rows about the person of ``--about``: those that have its words, and the groups of these. None without it."""
        if not self.query.about:
            return None
        words = {word for text in self.query.about for word in words_of(text)}
        named = {row for row in kept if words <= set(self.folded(row).split())}
        if not named:
            self.notes.append("no row of the person has the words of --about, so all are unsure")
        chosen = {several[row] for row in named if row in several}
        return named | {row for row, group in several.items() if group in chosen}


_STAGES = "llm_forget.find.stages"


def _best(evidence: Iterable[Evidence]) -> dict[str, float]:
    """The strongest evidence of each reason."""
    best: dict[str, float] = {}
    for one in evidence:
        best[one.reason] = max(one.score, best.get(one.reason, 0.0))
    return best


def find(data: Corpus | str | Path | Sequence[str | Path], **query: Any) -> pd.DataFrame:
    """``find_rows`` as a table with a row per hit, best first: file, line, score, reasons, decision and group.

    Args:
        data: as for ``find_rows``.
        query: the keyword arguments of ``find_rows``.

    Returns:
        The table. ``attrs["searched"]`` is the record of the search, ``attrs["notes"]`` what it has to say.

    Raises:
        UserError: nothing is searched for.
        DataError: the data cannot be read.
        MissingExtraError: pandas is not installed.
    """
    return find_rows(data, **query).frame()


def find_rows(
    data: Corpus | str | Path | Sequence[str | Path],
    *,
    person: str | Sequence[str] = (),
    alias: str | Sequence[str] = (),
    email: str | Sequence[str] = (),
    identifier: str | Sequence[str] = (),
    answer: str | Sequence[str] = (),
    question: str | Sequence[str] = (),
    rows: str | Sequence[str] = (),
    about: str | Sequence[str] = (),
    model: Model | None = None,
    attribution: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Found:
    """Find the rows about a person, or the rows that taught a model an answer.

    Args:
        data: files and folders, or a corpus that was read before, for several searches.
        person: full names.
        alias: other names of the same person.
        email: addresses.
        identifier: phone, account or customer numbers.
        answer: what a model should not have written.
        question: the questions that led to the answers, in the same order.
        rows: texts of rows; more like these are searched.
        about: words of one of the person's rows, to tell people of one name apart.
        model: for paraphrases and attribution.
        attribution: ``gradients``, ``unlearning`` or another file of ``llm_forget/find/attribution``.
        columns: our field names → the files' column names, as in a recipe.

    Returns:
        The hits, best first, and what was searched. ``.frame()`` gives a DataFrame.

    Raises:
        UserError: nothing is searched for.
        DataError: the data cannot be read.
    """
    query = Query(
        people=_texts(person),
        aliases=_texts(alias),
        emails=_texts(email),
        identifiers=_texts(identifier),
        answers=_texts(answer),
        questions=_texts(question),
        texts=_texts(rows),
        about=_texts(about),
    )
    if not isinstance(data, Corpus):
        data = Corpus.read([data] if isinstance(data, str | Path) else data)
    search = Search(data, query, model, attribution, columns=dict(columns or {}))
    search.people = [Subject(name) for name in query.names]
    return search.run()


def _example(row: Row, columns: Mapping[str, str]) -> Example:
    try:
        named = {name: column for name, column in columns.items() if column in row.values}
        return check_rows(iter([row]), DataSource(path=row.source, columns=named))[0]
    except DataError:
        text = text_of(row.values)
        return Example(id=example_id("", text), prompt="", answer=text, source=row.source)


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
