"""The rows of all files in memory, by word: texts in Arrow, and a sparse matrix of the words of every row.

A million rows of 250 characters take about a gigabyte. bm25s would index row by row in Python; here whole pieces of the data are
split and counted at once, and BM25 scores are computed for the words of a query only.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy import sparse

from llm_forget.data.row import Row
from llm_forget.data.similar import rarity, saturation
from llm_forget.errors import DataError
from llm_forget.find.sources import Place, files_in, line_of, name_in, record_in, rows_of, text_of
from llm_forget.find.spans import Casing, Mentions, Span
from llm_forget.find.words import fold, split, words_of
from llm_forget.utils.files import file_digest

Rows = NDArray[np.int64]
_SAMPLED = 5_000  # rows from which it is learnt how words are written
_MOST_COUNTED = 65_535  # of one word in one row
_CHUNK_ROWS, _CHUNK_CHARACTERS = 20_000, 1 << 25


@dataclass(frozen=True)
class SearchedFile:
    """A file that was read.

    Attributes:
        file: its path as the user gave it.
        rows: number of rows that were searched.
        digest: SHA-256 of its bytes; None for a folder.
        unreadable: places of the rows that could not be read and were not searched.
    """

    file: str
    rows: int
    digest: str | None
    unreadable: tuple[int, ...] = ()


@dataclass
class Corpus:
    """All rows of the files that are searched. Rows are numbered from 0 across files.

    Attributes:
        files: the files, in order.
        words: the vocabulary; a word's number is its index.
        frequency: (V,) number of rows that hold each word.
        lengths: (N,) number of words of each row.
        subjects: (N,) hash of the column that says who a row is about, 0 without one.
        records: (N,) hash of the column that makes rows one record, 0 without one.
        notes: lines for the user about how files were read.
        texts: the rows' texts, in pieces.
        counts: (N, V) how often each row holds each word, sparse, by column.
        lines: (N,) line or number of each row in its file.
        casing: how words are written; None until it is learnt.
        spans: row → its names and titles, of rows that were looked at.
        folded: row → its folded words, of rows that were looked at.
        mentions: folded name → how it is used.
    """

    files: list[SearchedFile] = field(default_factory=list)
    words: list[str] = field(default_factory=list, repr=False)
    frequency: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    lengths: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)
    subjects: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    records: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    notes: list[str] = field(default_factory=list)
    casing: Casing | None = field(default=None, repr=False)
    spans: dict[int, list[Span]] = field(default_factory=dict, repr=False)
    folded: dict[int, str] = field(default_factory=dict, repr=False)
    mentions: dict[str, Mentions] = field(default_factory=dict, repr=False)
    _ids: dict[str, int] = field(default_factory=dict, repr=False)
    texts: list[pa.StringArray] = field(default_factory=list, repr=False)
    _pieces: list[sparse.csr_array] = field(default_factory=list, repr=False)  # while it is read
    counts: Any = field(default=None, repr=False)  # (N, V), by column
    _starts: list[int] = field(default_factory=list, repr=False)  # first row of each piece
    lines: array[int] = field(default_factory=lambda: array("i"), repr=False)
    _file_starts: list[int] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    # --- reading ---

    @classmethod
    def read(cls, data: Sequence[str | Path]) -> Corpus:
        """Read files and folders.

        Args:
            data: files that the toolkit reads, or folders with such files.

        Raises:
            DataError: a file cannot be read as a whole, or no row can be searched.
        """
        corpus = cls()
        files = files_in(data)
        if not files:
            raise DataError("no data to search: give --data FILE or FOLDER")
        subjects, records = array("q"), array("q")
        texts: list[str] = []
        size = 0
        for file in files:
            corpus._file_starts.append(len(corpus))
            unreadable: list[int] = []
            for row in rows_of(file, corpus.notes):
                if row.problem is not None:
                    unreadable.append(line_of(row))
                    continue
                text = text_of(row.values)
                subject, record = name_in(row.values), record_in(row.values)
                subjects.append(0 if subject is None else _key(subject.casefold()))
                records.append(0 if record is None else _key(f"{file}\n{record[0]}\n{record[1]}"))
                corpus.lines.append(line_of(row))
                texts.append(text)
                size += len(text)
                if len(texts) >= _CHUNK_ROWS or size >= _CHUNK_CHARACTERS:
                    corpus._add(texts)
                    texts, size = [], 0
            path = Path(file).expanduser()
            rows = len(corpus) - corpus._file_starts[-1]
            corpus.files.append(
                SearchedFile(file, rows, file_digest(path) if path.is_file() else None, tuple(unreadable))
            )
        corpus._add(texts)
        if not len(corpus):
            broken = sum(len(one.unreadable) for one in corpus.files)
            why = f"{broken} cannot be read as JSON or a table" if broken else "no rows"
            raise DataError(f"{', '.join(files[:5])}: no row can be searched ({why}): check the files")
        corpus.subjects, corpus.records = np.asarray(subjects, np.int64), np.asarray(records, np.int64)
        corpus._finish()
        return corpus

    @classmethod
    def restored(cls, **parts: Any) -> Corpus:
        """A corpus from its parts: files, words, counts, texts, lines, subjects, records, lengths and notes."""
        corpus = cls(**parts)
        corpus._ids = {word: number for number, word in enumerate(corpus.words)}
        corpus._starts = np.cumsum([0, *map(len, corpus.texts)])[:-1].tolist()
        corpus._file_starts = np.cumsum([0, *(file.rows for file in corpus.files)])[:-1].tolist()
        corpus.frequency = np.diff(corpus.counts.indptr).astype(np.int64)
        return corpus

    def _add(self, texts: list[str]) -> None:
        """Add a piece: its texts, and how often each row holds each word."""
        if not texts:
            return
        piece = _arrow(texts)
        words, offsets = split(fold(piece))
        encoded = words.dictionary_encode()
        known = self._ids
        numbers = np.fromiter(
            (known.setdefault(word, len(known)) if word else -1 for word in encoded.dictionary.to_pylist()),
            np.int32,
            len(encoded.dictionary),
        )
        taken = numbers[np.asarray(encoded.indices)] if len(words) else np.zeros(0, np.int32)
        full = np.concatenate([[0], np.cumsum(taken >= 0)])
        offsets = full[offsets]  # empty words do not count
        taken = taken[taken >= 0]
        counts = sparse.csr_array(
            (np.ones(len(taken), np.int32), taken, offsets.astype(np.int32)), shape=(len(texts), len(known))
        )
        counts.sum_duplicates()
        self._starts.append(sum(map(len, self.texts)))
        self.texts.append(piece)
        self._pieces.append(counts)

    def _finish(self) -> None:
        """Turn the counts of all pieces around: from the words of a row to the rows of a word."""
        self.words = list(self._ids)
        self.lengths = np.concatenate([np.asarray(counts.sum(axis=1), np.int32) for counts in self._pieces])
        shape = (len(self), len(self.words))
        starts = np.cumsum([0, *(counts.nnz for counts in self._pieces)])
        by_row = sparse.csr_array(
            (
                np.concatenate([np.minimum(counts.data, _MOST_COUNTED).astype(np.uint16) for counts in self._pieces]),
                np.concatenate([counts.indices for counts in self._pieces]),
                np.concatenate(
                    [[0], *(counts.indptr[1:] + at for counts, at in zip(self._pieces, starts, strict=False))]
                ),
            ),
            shape=shape,
        )
        self._pieces = []
        self.counts = by_row.tocsc()
        self.frequency = np.diff(self.counts.indptr).astype(np.int64)

    # --- rows ---

    def text(self, row: int) -> str:
        """The text of a row."""
        piece = int(np.searchsorted(self._starts, row, side="right")) - 1
        return str(self.texts[piece][row - self._starts[piece]].as_py())

    def place(self, row: int) -> Place:
        """File and line of a row."""
        at = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return Place(self.files[at].file, self.lines[row])

    def file_of(self, row: int) -> int:
        """Index of a row's file in ``files``."""
        return int(np.searchsorted(self._file_starts, row, side="right")) - 1

    def row_at(self, place: Place) -> int | None:
        """The number of the row at a place, or None."""
        for at, file in enumerate(self.files):
            if file.file == place.file:
                first, end = self._file_starts[at], self._file_starts[at] + file.rows
                lines = np.asarray(self.lines[first:end])
                found = np.flatnonzero(lines == place.line)
                return first + int(found[0]) if len(found) else None
        return None

    def values(self, rows: Sequence[int]) -> list[Row]:
        """The rows as they are in the files, in the given order. Reads the files again.

        Raises:
            DataError: a file changed since it was read.
        """
        wanted: dict[int, set[int]] = {}
        for row in rows:
            wanted.setdefault(self.file_of(row), set()).add(self.lines[row])
        found: dict[tuple[int, int], Row] = {}
        for at, lines in wanted.items():
            for read in rows_of(self.files[at].file, []):
                line = line_of(read)
                if line in lines:
                    found[at, line] = read
                    if len(found) == sum(map(len, wanted.values())):
                        break
        try:
            return [found[self.file_of(row), self.lines[row]] for row in rows]
        except KeyError:
            raise DataError("a file that was searched has changed meanwhile: search again") from None

    # --- words ---

    def number(self, word: str) -> int | None:
        """The number of a folded word, None if no row holds it."""
        return self._ids.get(word)

    def numbers(self, text: str) -> list[int]:
        """The numbers of the words of a text that some row holds, each once."""
        found = (self._ids.get(word) for word in dict.fromkeys(words_of(text)))
        return [number for number in found if number is not None]

    def numbers_like(self, accepts: Callable[[str], bool]) -> list[int]:
        """The numbers of the words that a function accepts."""
        return [number for number, word in enumerate(self.words) if accepts(word)]

    @cached_property
    def transliterated(self) -> list[str]:
        """The vocabulary in ASCII."""
        from anyascii import anyascii

        return [word if word.isascii() else anyascii(word).casefold() for word in self.words]

    @cached_property
    def other_scripts(self) -> dict[int, str]:
        """The words that are not in ASCII: number → in ASCII."""
        plain = self.transliterated
        return {number: plain[number] for number, word in enumerate(self.words) if not word.isascii()}

    def rarity(self, numbers: Sequence[int] | Rows) -> NDArray[np.float64]:
        """The inverse document frequency of words, as BM25 takes it."""
        found: NDArray[np.float64] = rarity(self.frequency[np.asarray(numbers, np.int64)].astype(np.float64), len(self))
        return found

    def holding(self, numbers: Iterable[int]) -> Rows:
        """The rows that hold any of the words, sorted."""
        found = [self._rows(number) for number in numbers]
        return np.unique(np.concatenate(found)).astype(np.int64) if found else np.zeros(0, np.int64)

    def holding_all(self, numbers: Iterable[int]) -> Rows:
        """The rows that hold each of the words, sorted."""
        rows: Rows | None = None
        for number in sorted(set(numbers), key=lambda one: int(self.frequency[one])):
            here = self._rows(number)
            if rows is None:
                rows = here.astype(np.int64)
                continue
            at = np.minimum(np.searchsorted(here, rows), len(here) - 1)
            rows = rows[here[at] == rows]
        return np.zeros(0, np.int64) if rows is None else rows

    def holding_any_of_each(self, groups: Sequence[Sequence[int]]) -> Rows:
        """The rows that hold at least one word of each group, sorted."""
        rows: Rows | None = None
        for group in groups:
            found = self.holding(group)
            rows = found if rows is None else np.intersect1d(rows, found, assume_unique=True)
        return np.zeros(0, np.int64) if rows is None else rows

    def _rows(self, number: int) -> NDArray[np.int32]:
        counts = self.counts
        rows: NDArray[np.int32] = counts.indices[counts.indptr[number] : counts.indptr[number + 1]]
        return rows

    def bm25(self, text: str) -> NDArray[np.float32]:
        """(N,) BM25 scores of all rows for a text, in the variant of Lucene with k₁ = 1.5 and b = 0.75.

        Source: Robertson and Zaragoza 2009, *The probabilistic relevance framework*; Kamphuis et al. 2020 for the variant.
        """
        scores = np.zeros(len(self), np.float32)
        numbers = self.numbers(text)
        if not numbers:
            return scores
        mean = max(float(self.lengths.mean()), 1.0)
        for number, rare in zip(numbers, self.rarity(numbers), strict=True):
            rows = self._rows(number)
            often = self.counts.data[self.counts.indptr[number] : self.counts.indptr[number + 1]].astype(np.float32)
            scores[rows] += rare * saturation(often, self.lengths[rows], mean)
        return scores


def _key(text: str) -> int:
    """64 bits of a digest, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), signed=True)


def learnt_casing(corpus: Corpus) -> Casing:
    """How words are written in a corpus, learnt from a sample of its rows at the first call."""
    if corpus.casing is None:
        corpus.casing = Casing()
        rows: Iterable[int] = range(len(corpus))
        if len(corpus) > _SAMPLED:
            rows = sorted(random.Random(0).sample(range(len(corpus)), _SAMPLED))
        corpus.casing.learn(corpus.text(row) for row in rows)
    return corpus.casing


def top(scores: NDArray[np.float32], most: int) -> list[int]:
    """The rows with the highest positive scores, best first; equal scores in order of the rows."""
    most = min(most, len(scores))
    best = np.argpartition(-scores, most - 1)[:most] if most < len(scores) else np.arange(len(scores))
    best = best[np.lexsort((best, -scores[best]))]
    return [int(row) for row in best if scores[row] > 0]


def _arrow(texts: list[str]) -> pa.StringArray:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # half of a surrogate pair
        return pa.array([text.encode("utf-8", "replace").decode("utf-8") for text in texts], pa.string())
