"""Several people of one name: which of the rows belong together, and which were meant."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llm_forget.find.words import words_of

if TYPE_CHECKING:
    from llm_forget.find.search import Search

_MOST_ROWS = 2_000  # rows that are compared
_RARE = 50  # a word in more rows than this links nothing
_NEAR = 4  # rows in between
_LEAST = 3  # rows of a group


def groups(search: Search, rows: Sequence[int]) -> dict[int, int]:
    """Row → number of its group, from 1, the largest first; empty if there are not several groups.

    Rows belong together if they have the same key column, stand close to each other, or share a rare name or number besides the
    name that is searched for. A row that is linked to fewer than two others is in no group.

    Args:
        search: a finished search.
        rows: rows that were found.
    """
    if not search.people or not 2 * _LEAST <= len(rows) <= _MOST_ROWS:
        return {}
    parent = {row: row for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, second in _links(search, sorted(rows)):
        parent[root(first)] = root(second)
    sizes = Counter(root(row) for row in rows)
    large = [one for one, size in sizes.most_common() if size >= _LEAST]
    if len(large) < 2:
        return {}
    number = {one: at for at, one in enumerate(large, start=1)}
    return {row: number[root(row)] for row in rows if root(row) in number}


def _links(search: Search, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of rows that belong together."""
    corpus = search.corpus
    for first, second in itertools.pairwise(rows):
        if second - first <= _NEAR and corpus.file_of(first) == corpus.file_of(second):
            yield first, second
    by: dict[tuple[str, object], list[int]] = defaultdict(list)
    names = {word for one in search.people for word in words_of(one.name)}
    for row in rows:
        for kind, keys in (("subject", corpus.subjects), ("record", corpus.records)):
            if keys[row]:
                by[kind, int(keys[row])].append(row)
        for key in _details(search, row, names):
            by["detail", key].append(row)
    for together in by.values():
        yield from itertools.pairwise(together)


def _details(search: Search, row: int, names: set[str]) -> Iterator[str]:
    """The rare names and long numbers in a row, without the name that is searched for."""
    for span in search.spans(row):
        if not set(span.words) & names and _is_rare(search, span.words):
            yield span.key
    for word in search.folded(row).split():
        if len(word) >= 5 and any(map(str.isdigit, word)) and _is_rare(search, [word]):
            yield word


def _is_rare(search: Search, words: Iterable[str]) -> bool:
    numbers = [number for word in words if (number := search.corpus.number(word)) is not None]
    return min(search.corpus.frequency[numbers], default=_RARE + 1) <= _RARE


def contradictions(search: Search, rows: Sequence[int]) -> int:
    """In how many questions two rows that were found agree, but not in the answer, once the name is left out.

    Args:
        search: a finished search.
        rows: rows that were found.
    """
    names = [" ".join(words_of(one.name)) for one in search.people]
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows[:_MOST_ROWS]:
        question, _, answer = search.corpus.text(row).partition("\n")
        asked = f" {' '.join(words_of(question))} "
        if answer and any(f" {name} " in asked for name in names):
            answers[asked].add(" ".join(words_of(answer)))
    return sum(len(given) > 1 for given in answers.values())
